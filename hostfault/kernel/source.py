"""Kernel source trees: what is in them, how two of them differ, and which release they make."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.errors import LaunchError, UsageError
from hostfault.plumbing.packages import run_tool

Manifest = Mapping[str, str]  # a file's path below the tree -> hash of its content

# What no build reads, at least none for x86: neither copied nor compared. (arch/um is: fs/hostfs
# reads a part of it even where it is off.)
_UNUSED = re.compile(
    r"Documentation/|LICENSES/|debian/|samples/|tools/(?:testing|perf)/|arch/(?!x86/|um/|Kconfig$)"
    r"|(?:CREDITS|MAINTAINERS|COPYING|README)$|(?:.*/)?\.[^/]*(?:$|/)"
)
_KCONFIG = re.compile(r"(?:.*/)?Kconfig[^/]*$")  # read wherever it lies
_FOREIGN = re.compile(r"arch/(?!x86/|Kconfig)")
_OPTION = re.compile(r"^[ \t]*(?:menu)?config[ \t]+(\w+)", re.MULTILINE)
# What a build leaves in the tree; only matters where git does not tell it apart.
_PRODUCT = re.compile(
    r"include/(?:generated|config)/|arch/x86/include/generated/|arch/x86/boot/(?:bzImage|vmlinux)"
    r"|(?:vmlinux|System\.map|Module\.symvers|modules\.|certs/signing_key)"
    r"|arch/x86/kvm/kvm-asm-offsets\.h$|(?:.*/)?Module\.symvers$"
    r"|.*(?:\.(?:o|ko|a|so|mod|mod\.c|cmd|order|s|tmp|orig|rej)|~)$"
)
# The part that KVM's modules are made of, and nothing else: not their Kconfig, because the
# configuration of a kernel that exists already is not made anew, and not the headers that the
# kernel proper is compiled with (docs/kernels.md says how that was found out): those of the guest
# side (kvm_para.h, kvmclock.h), of exports for KVM (kvm_types.h), and uapi/asm/kvm.h.
_KVM = re.compile(
    r"(?:arch/x86|virt)/kvm/(?!(?:.*/)?Kconfig[^/]*$)"
    r"|include/linux/kvm_(?!(?:para|types)\.h)\w+\.h$"
    r"|include/trace/events/kvm\.h$|include/uapi/linux/kvm\.h$"
    r"|arch/x86/include/asm/kvm(?!(?:_para|_types|clock)\.h)[-\w]*\.h$"
    r"|arch/x86/include/uapi/asm/kvm_perf\.h$"
)
_FOUND_BY_ITSELF = re.compile(r"(?:include|arch/x86/include)/.*\.h$")
_KVM_HOST = "arch/x86/include/asm/kvm_host.h"
# Parts of KVM's headers that the kernel proper looks into (arch/x86/events/intel/core.c).
_SHARED_STRUCTS = ("kvm_pmu", "kvm_pmc")
_MACRO_NAME = re.compile(r"\b[A-Z][A-Z0-9_]+\b")


@dataclass(frozen=True)
class Difference:
    """Where two trees differ, sorted."""

    kvm: tuple[str, ...]  # in KVM and its headers
    other: tuple[str, ...]  # anywhere else


def is_unused(name: str) -> bool:
    """Whether no build for x86 reads a file."""
    return _UNUSED.match(name) is not None and not _KCONFIG.match(name)


def is_kvm(name: str) -> bool:
    """Whether a file belongs to KVM's modules or their headers."""
    return _KVM.match(name) is not None


def files_of(tree: Path) -> list[str]:
    """The source files of a tree, sorted.

    In a git work tree these are the tracked files and the untracked ones that are not ignored;
    elsewhere all that does not look like the product of a build. Raises :class:`UsageError` if
    the tree cannot be read.
    """
    names = git_files(tree) if (tree / ".git").exists() else _walk(tree)
    return sorted(name for name in names if not is_unused(name))


def git_files(tree: Path) -> Iterator[str]:
    """What git has of a tree, and what it does not ignore. Raises :class:`UsageError`."""
    # Whose tree it is does not matter, and nothing that its configuration names may run.
    safe = ["-c", f"safe.directory={tree}", "-c", "core.fsmonitor=false"]
    line = ["git", "-C", str(tree), *safe, "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        names = run_tool(line, what=f"git ls-files in {tree}").split("\0")
    except LaunchError as error:
        raise UsageError(f"tree {tree}: git cannot list its files\n{error}") from error
    for name in set(names) - {""}:
        path = tree / name
        if path.is_symlink() or path.is_file():  # neither deleted nor a submodule
            yield name


def _walk(tree: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UsageError(f"tree {tree}: {error.filename}: {error.strerror}")

    for folder, folders, files in os.walk(tree, onerror=refuse):
        prefix = os.path.relpath(folder, tree)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for file in files + links:
            name = file if prefix == "." else f"{prefix}/{file}"
            if not _PRODUCT.match(name):
                yield name


def manifest(tree: Path, names: Iterable[str]) -> Manifest:
    """The content of some files of a tree. Raises :class:`UsageError` if one is unreadable."""
    try:
        return {name: _digest(f"{tree}/{name}") for name in names}
    except OSError as error:
        raise UsageError(f"tree {tree}: {error.filename}: {error.strerror}") from error


def _digest(path: str) -> str:
    # Neither Path nor threads: for 60,000 small files each takes longer than reading them does.
    if os.path.islink(path):  # noqa: PTH114
        return link_digest(os.readlink(path))  # noqa: PTH115
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123
        return digest_of(stream.read())


def digest_of(data: bytes) -> str:
    """How a manifest stands for the content of a file."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def link_digest(target: str) -> str:
    """How a manifest stands for a symbolic link."""
    return f"-> {target}"


def without_strangers(files: Manifest, known: Manifest) -> Manifest:
    """Of a tree outside git: leave out what another tree does not have and no build finds.

    That is mostly what was built in the tree. A new file matters if a changed one names it, and
    then the changed one is a difference; only a header can take another's place by being there.
    """
    return {
        name: value
        for name, value in files.items()
        if name in known or is_kvm(name) or _FOUND_BY_ITSELF.match(name)
    }


def difference(old: Manifest, new: Manifest) -> Difference:
    """Where two manifests differ, files that only one has included."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return Difference(
        kvm=tuple(name for name in names if is_kvm(name)),
        other=tuple(name for name in names if not is_kvm(name)),
    )


def digest_of_all(files: Manifest) -> str:
    """One hash for a whole manifest."""
    lines = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def write_manifest(files: Manifest, path: Path) -> None:
    """Store a manifest, see :func:`read_manifest`."""
    path.write_text("".join(f"{files[name]}\t{name}\n" for name in sorted(files)))


def read_manifest(path: Path) -> Manifest:
    """A manifest as :func:`write_manifest` stored it."""
    lines = (line.split("\t", 1) for line in path.read_text().splitlines())
    return {name: value for value, name in lines}


def shared_structs(tree: Path) -> str:
    """The definitions in KVM's headers that code outside of KVM is compiled with.

    That is the structs, and the macros of the same header that their arrays are sized by. A tree
    that lacks the header has none: nothing will be compiled of it anyway.
    """
    path = tree / _KVM_HOST
    text = path.read_text(errors="replace") if path.is_file() else ""
    found = [
        re.search(rf"^struct {name} {{.*?^}};", text, re.MULTILINE | re.DOTALL)
        for name in _SHARED_STRUCTS
    ]
    structs = "\n".join(match[0] for match in found if match)
    return "\n".join([structs, *_macros(structs, text)]).strip()


def _macros(used_in: str, header: str) -> list[str]:
    """The definitions of all macros that a text uses, directly or through others, sorted."""
    lines = re.findall(r"^# *define (\w+)((?:.*\\\n)*.*)$", header, re.MULTILINE)
    known = {name: f"{name}{value}" for name, value in lines}
    wanted, found = set(_MACRO_NAME.findall(used_in)), set[str]()
    while new := (wanted & known.keys()) - found:
        found |= new
        wanted = {each for name in new for each in _MACRO_NAME.findall(known[name])}
    return sorted(known[name] for name in found)


def options_in(tree: Path, names: Iterable[str]) -> set[str]:
    """The options that the Kconfig files of a tree define, e.g. "CONFIG_KVM".

    ``names`` are all its files. Those of other architectures do not count.
    """
    found: set[str] = set()
    for name in names:
        if _KCONFIG.match(name) and not _FOREIGN.match(name):
            found.update(_OPTION.findall((tree / name).read_text(errors="replace")))
    return {f"CONFIG_{option}" for option in found}


def version_in(tree: Path) -> str:
    """The version that a tree's Makefile says, e.g. "7.3.4" or "7.4.0-rc1".

    Raises :class:`UsageError` if it is no kernel source.
    """
    try:
        text = (tree / "Makefile").read_text(errors="replace")[:4000]
    except OSError as error:
        raise UsageError(f"tree {tree}: no kernel source: Makefile: {error.strerror}") from error
    parts: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *=[ \t]*(.*)$", text, re.MULTILINE)
    )
    numbers = [parts.get(name, "").strip() for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")]
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"tree {tree}: no kernel source: its Makefile names no version")
    return ".".join(numbers) + parts.get("EXTRAVERSION", "").strip()


def configured_version(config: Path) -> str:
    """The version in the heading of a .config, or "" if it has none."""
    with config.open(errors="replace") as stream:
        head = stream.read(1000)
    found = re.search(r"^# Linux/\S+ (\S+) Kernel Configuration", head, re.MULTILINE)
    return found[1] if found else ""
