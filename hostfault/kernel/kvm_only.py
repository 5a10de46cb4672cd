"""KVM's modules alone, built for a kernel that exists already.

What that takes is kept beside the kernel, as a :class:`Base`: its source tree as far as KVM's
modules need it, configured and prepared. A build takes a copy of that tree, changes KVM in it,
compiles arch/x86/kvm, and puts the modules in front of the kernel's own (``updates/``).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.kernel.buildroot import BuildRoot
from hostfault.kernel.source import is_kvm
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import LaunchError, SetupError, UsageError
from hostfault.plumbing.packages import run_tool

log = logging.getLogger(__name__)

MODULES = ("kvm.ko", "kvm-amd.ko", "kvm-intel.ko")
PREPARE_PATIENCE = 1200.0  # seconds, on a slow machine
KVM_PATIENCE = 1800.0  # the same
LAYOUT = "2"  # change it when the same inputs are made into something else, here or in source.py
# All that `make M=arch/x86/kvm` looks at.
_NEEDED = ("Makefile", "Kbuild", "Module.symvers", ".config", "arch/x86", "include", "scripts")
_NEEDED_TOOLS = ("tools/objtool/objtool", "tools/bpf/resolve_btfids/resolve_btfids")
_NOTE_HEAD = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"  # ELF note: GNU, 20 bytes, NT_GNU_BUILD_ID
# Options that change struct module: a module built without them is refused by the loader.
_LAYOUT_OPTIONS = re.compile(
    r"^CONFIG_(?:MODULE_SIG|DEBUG_INFO_BTF_MODULES|MODULE_UNLOAD|KALLSYMS|TRACEPOINTS|SMP"
    r"|EVENT_TRACING|FTRACE_MCOUNT_RECORD|BPF_EVENTS|JUMP_LABEL|LIVEPATCH|KPROBES|KUNIT"
    r"|FUNCTION_ALIGNMENT|UNWINDER_ORC|MITIGATION_ITS|DYNAMIC_DEBUG_CORE)=.*$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Base:
    """A kernel that exists already, and what it takes to build KVM's modules for it."""

    key: str  # hash of everything that decides over the modules, but for KVM's own source
    release: str  # what `uname -r` says
    image: Path  # bzImage
    modules: Path  # lib/modules/RELEASE
    tree: Path  # prepared source, see :func:`keep_needed`


@dataclass(frozen=True)
class Built:
    """A finished kernel with KVM's modules of our own."""

    image: Path
    modules: Path
    build_id: str  # of kvm.ko


def prepare(tree: Path, root: BuildRoot, release: str, config: Path) -> None:
    """Configure a packaged source with its kernel's own configuration, and make what modules need.

    Raises :class:`SetupError` if the toolchain cannot do that, or would build modules that the
    kernel refuses to load.
    """
    shutil.copy(config, tree / ".config")
    for words in (["olddefconfig"], ["modules_prepare", f"KERNELRELEASE={release}"]):
        what = f"preparing the source of {release} ({words[0]})"
        try:
            root.make(tree, *words, what=what, patience=PREPARE_PATIENCE)
        except LaunchError as error:
            if "No space left on device" in error.log_tail:
                raise
            # The source is the packager's: it is not at fault, as that of a tree would be.
            raise SetupError(str(error)) from error
        check_layout(config.read_text(), (tree / ".config").read_text())


def check_layout(wanted: str, got: str) -> None:
    """Raise :class:`SetupError` if a configuration lost an option that the loader relies on."""
    lost = set(_LAYOUT_OPTIONS.findall(wanted)) - set(_LAYOUT_OPTIONS.findall(got))
    if lost:
        raise SetupError(
            f"olddefconfig dropped {', '.join(sorted(lost))}, and without it the kernel refuses "
            "modules: the build root (images/build/packages) lacks a tool that it depends on"
        )


def keep_needed(tree: Path, place: Path) -> None:
    """Move of a prepared tree what KVM's modules need to ``place``, and remove the rest."""
    place.mkdir()
    for name in (*_NEEDED, *_NEEDED_TOOLS, "virt"):
        if (tree / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).rename(place / name)
    shutil.rmtree(tree)
    for product in (*place.glob("arch/x86/**/*.o"), *place.glob("arch/x86/kvm/*.ko")):
        product.unlink()


def build_kvm(
    base: Base, root: BuildRoot, cache: Cache, change: Callable[[Path], None], source: str
) -> Built:
    """KVM's modules from a base's source after ``change(tree)``, in front of the base's own.

    ``source`` identifies the change: the cache is looked up by it. Raises :class:`LaunchError`
    with the compiler's errors, and whatever ``change`` raises.
    """
    key = key_of({"layout": LAYOUT, "base": base.key, "source": source})
    place = cache.obtain("built", key, lambda empty: _build(empty, base, root, change))
    return Built(
        image=place / "bzImage",
        modules=place / "lib/modules" / base.release,
        build_id=(place / "build-id").read_text(),
    )


def _build(place: Path, base: Base, root: BuildRoot, change: Callable[[Path], None]) -> None:
    tree = place / "src"
    run_tool(
        ["cp", "-a", "--reflink=auto", str(base.tree), str(tree)],
        what=f"copying the source of {base.release}",
    )
    change(tree)
    compile_modules(tree, root, base.release)
    modules = place / "lib/modules" / base.release
    share(base.modules, modules)
    updates = modules / "updates"
    updates.mkdir(exist_ok=True)
    for name in MODULES:
        shutil.copy(tree / "arch/x86/kvm" / name, updates / name)
    run_tool(["depmod", "--basedir", str(place), base.release], what="listing the modules")
    os.link(base.image, place / "bzImage")
    (place / "build-id").write_text(build_id(updates / "kvm.ko"))
    shutil.rmtree(tree)
    tree.with_name("src.log").unlink()


def compile_modules(tree: Path, root: BuildRoot, release: str) -> None:
    """Compile arch/x86/kvm in a prepared tree. Raises :class:`LaunchError`."""
    root.make(
        tree,
        "M=arch/x86/kvm",
        f"KERNELRELEASE={release}",
        "KCFLAGS=-g0",  # nobody reads the debug information, and making it takes time
        "modules",
        what=f"compiling KVM for {release}",
        patience=KVM_PATIENCE,
    )


def share(old: Path, new: Path) -> None:
    """A directory of modules that has all of ``old``; big files are shared, lists are its own."""
    new.parent.mkdir(parents=True)
    run_tool(["cp", "-al", str(old), str(new)], what=f"sharing {old}")
    for listing in new.glob("modules.*"):  # depmod may write into them
        content = listing.read_bytes()
        listing.unlink()
        listing.write_bytes(content)


def replace_kvm(tree: Path, source: Path, names: Sequence[str]) -> None:
    """Let a prepared tree have the KVM of another one; ``names`` are all files of the latter."""
    for folder in ("arch/x86", "include", "virt"):
        for path in (tree / folder).rglob("*"):
            if is_kvm(str(path.relative_to(tree))) and not path.is_dir():
                path.unlink()
    for name in filter(is_kvm, names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, tree / name)


def build_id(module: Path) -> str:
    """The build id of a module, as /sys/module/NAME/notes/.note.gnu.build-id shows it, in hex.

    Raises :class:`UsageError` if it has none.
    """
    data = module.read_bytes()
    at = data.find(_NOTE_HEAD)
    if at < 0:
        raise UsageError(f"{module} has no build id")
    start = at + len(_NOTE_HEAD)
    return data[start : start + 20].hex()
