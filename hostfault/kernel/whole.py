"""A whole kernel from a source tree, as small as the suite allows.

The result is a :class:`~hostfault.kernel.kvm_only.Base` like a packaged kernel, and is kept by
what is outside of KVM: the next tree that differs in KVM alone needs KVM's modules only.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.kernel import configuration
from hostfault.kernel.buildroot import BuildRoot
from hostfault.kernel.configuration import Option
from hostfault.kernel.kvm_only import LAYOUT, Base, build_id, keep_needed
from hostfault.kernel.source import (
    Manifest,
    configured_version,
    digest_of,
    digest_of_all,
    is_kvm,
    options_in,
    version_in,
)
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.plumbing.packages import run_tool

log = logging.getLogger(__name__)

CONFIGURE_PATIENCE = 600.0  # seconds, on a slow machine
BUILD_PATIENCE = 4 * 3600.0  # the same, with a configuration of the tree's own
_INSTALLED = "hostfault-installed"  # in the tree: the only place that a build can write to
_MERGED = "hostfault.config"


@dataclass(frozen=True)
class Tree:
    """A source tree as it is right now."""

    path: Path
    version: str  # by its Makefile
    files: Manifest  # all that a build reads
    config: str  # its own .config, or "": then the suite's fragments are all there is
    shared: str  # see :func:`hostfault.kernel.source.shared_structs`

    @property
    def kvm(self) -> str:
        """A hash of KVM and its headers."""
        return digest_of_all({name: it for name, it in self.files.items() if is_kvm(name)})

    @property
    def rest(self) -> str:
        """A hash of everything else, and of what everything else is compiled with of KVM."""
        others = {name: it for name, it in self.files.items() if not is_kvm(name)}
        return digest_of_all({**others, "shared structs": digest_of(self.shared.encode())})


@dataclass(frozen=True)
class Whole:
    """A whole kernel that is built, with the KVM that its tree had then."""

    base: Base
    kvm: str  # see :attr:`Tree.kvm`
    build_id: str  # of its kvm.ko


def own_config(tree: Path) -> str:
    """The .config that lies in a tree, or "".

    Raises :class:`UsageError` if it is that of another version.
    """
    path = tree / ".config"
    if not path.exists():
        return ""
    version, configured = version_in(tree), configured_version(path)
    if configured != version:
        raise UsageError(
            f"tree {tree} is Linux {version}, but its .config is of "
            f"{configured or 'no version that it tells'}: run make olddefconfig there, or remove "
            ".config to have the suite's own small configuration"
        )
    return path.read_text(errors="replace")


def whole_kernel(tree: Tree, root: BuildRoot, cache: Cache) -> Whole:
    """Everything but KVM as in ``tree``, built on first use.

    Raises :class:`LaunchError` with the compiler's errors, and :class:`SetupError` that names
    the options which the configuration does not take.
    """
    known = options_in(tree.path, tree.files)
    options = configuration.wanted(configuration.load(), known)
    key = key_of(
        {
            "layout": LAYOUT,
            "source": tree.rest,
            "options": "\n".join(option.line for option in options),
            "config": tree.config,
            "toolchain": root.toolchain,
        }
    )
    place = cache.obtain("whole-kernels", key, lambda empty: _build(empty, tree, options, root))
    release = (place / "release").read_text()
    base = Base(
        key=key,
        release=release,
        image=place / "bzImage",
        modules=place / "lib/modules" / release,
        tree=place / "tree",
    )
    return Whole(base, (place / "kvm").read_text(), (place / "build-id").read_text())


def _build(place: Path, tree: Tree, options: Sequence[Option], root: BuildRoot) -> None:
    source = place / "src"
    source.mkdir()
    run_tool(
        ["cpio", "--pass-through", "--null", "--make-directories", "--quiet", str(source)],
        what=f"copying {tree.path}",
        cwd=tree.path,
        input_text="".join(f"{name}\0" for name in sorted(tree.files)),
    )
    configure(source, tree.config, options, root)
    root.make(source, "bzImage", "modules", what="compiling the kernel", patience=BUILD_PATIENCE)
    identity = _identity_of_kvm(source)
    release = (source / "include/config/kernel.release").read_text().strip()
    root.make(
        source,
        "modules_install",
        f"INSTALL_MOD_PATH=/src/{_INSTALLED}",
        "INSTALL_MOD_STRIP=1",
        what="installing the modules",
        patience=CONFIGURE_PATIENCE,
    )
    (source / _INSTALLED / "lib").rename(place / "lib")
    modules = place / "lib/modules" / release
    for link in ("build", "source"):  # to where it was built, which nobody can follow
        (modules / link).unlink(missing_ok=True)
    run_tool(["depmod", "--basedir", str(place), release], what=f"listing modules of {release}")
    shutil.copy(source / "arch/x86/boot/bzImage", place / "bzImage")
    keep_needed(source, place / "tree")
    (place / "release").write_text(release)
    (place / "kvm").write_text(tree.kvm)
    (place / "build-id").write_text(identity)
    (place / "src.log").unlink()


def _identity_of_kvm(source: Path) -> str:
    """The build id of the KVM that was compiled: once installed it may be compressed."""
    module = source / "arch/x86/kvm/kvm.ko"
    if not module.is_file():
        raise SetupError(
            "the kernel was compiled without a module kvm.ko, so KVM is built in or left out: "
            "see CONFIG_KVM in the tree's .config, and kernels/config/30-kvm.config"
        )
    return build_id(module)


def configure(source: Path, own: str, options: Sequence[Option], root: BuildRoot) -> None:
    """Write the .config of a tree: its own, if any, with the suite's options on top.

    Raises :class:`SetupError` that names the options which it does not take.
    """
    lines = "".join(f"{option.line}\n" for option in options)
    if own:
        (source / ".config").write_text(f"{own}\n{lines}")
        words = ["olddefconfig"]
    else:
        (source / _MERGED).write_text(lines)
        words = [f"KCONFIG_ALLCONFIG=/src/{_MERGED}", "allnoconfig"]
    root.make(source, *words, what="configuring the kernel", patience=CONFIGURE_PATIENCE)
    configuration.check(options, (source / ".config").read_text())
