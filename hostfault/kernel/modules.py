"""Which modules a boot needs, in the order in which they must be loaded."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import Kernel
from hostfault.plumbing.errors import LaunchError, SetupError, UsageError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.short_directory import short_directory


@dataclass(frozen=True)
class Module:
    """A module file of a kernel, as it lies in its modules directory."""

    file: Path  # may be compressed
    needed_for: str  # the module that was asked for

    @property
    def name(self) -> str:
        """Its file name without a compression's suffix, e.g. ``kvm-amd.ko``."""
        return self.file.name.split(".ko")[0] + ".ko"


def modules_for(kernel: Kernel, wanted: Sequence[str]) -> list[Module]:
    """The files to load for the ``wanted`` modules and what they depend on, in order.

    What is built into the kernel needs no file. Modules below ``updates/`` win, as for modprobe.
    Raises :class:`SetupError` if the kernel has one of them in neither form.
    """
    found: dict[Path, Module] = {}
    with short_directory() as root:
        parent = root / "lib" / "modules"
        parent.mkdir(parents=True)
        (parent / kernel.release).symlink_to(kernel.modules)
        lines = _all_at_once(root, kernel, wanted)
        prefix = str(parent / kernel.release)
    names = iter(wanted)
    needed_for = next(names, "")
    for line in lines:
        how, path = line.split()[:2]
        if how == "insmod":
            file = kernel.modules / path.removeprefix(prefix).lstrip("/")
            found.setdefault(file, Module(file, needed_for))
        if _normal(Path(path).name.split(".ko")[0]) == _normal(needed_for):
            needed_for = next(names, "")  # a module comes after all that it needs
    return list(found.values())


def some_of(kernel: Kernel, names: Sequence[str], *, at_least: int = 0) -> list[str]:
    """Those of some modules that a kernel has. Raises :class:`SetupError` if they are too few."""
    found = []
    for name in names:
        try:
            modules_for(kernel, [name])
        except SetupError as error:
            missing = error
        else:
            found.append(name)
    if len(found) < at_least:
        raise missing
    return found


def check_has(kernel: Kernel, module: str, wanted: str) -> None:
    """Raise :class:`UsageError` if a kernel lacks a module that ``wanted`` (an option) needs."""
    try:
        modules_for(kernel, [module])
    except SetupError as error:
        raise UsageError(
            f"{wanted}: kernel {kernel.name} ({kernel.release}) has no {module}, neither as a "
            f"module (looked in {kernel.modules}) nor built in"
        ) from error


def _normal(name: str) -> str:
    return name.replace("-", "_")


def _all_at_once(root: Path, kernel: Kernel, wanted: Sequence[str]) -> list[str]:
    """Lines ``insmod PATH`` and ``builtin NAME``, those of each module one after the other."""
    argv = ["modprobe", "--all", "--show-depends", "-C", "/dev/null", "-d", str(root)]
    try:
        said = run_tool([*argv, "-S", kernel.release, *wanted], what="looking for modules")
    except LaunchError as error:
        missing = re.findall(r"Module (\S+) not found", error.log_tail) or wanted
        raise SetupError(
            f"kernel {kernel.name} ({kernel.release}) has no module {', '.join(missing)}, and it "
            f"is not built in (looked in {kernel.modules})\n{error}"
        ) from error
    return [line for line in said.splitlines() if line.startswith(("insmod ", "builtin "))]


def decompress(file: Path, target: Path) -> None:
    """Write a module as the kernel's loader wants it, whichever way ``file`` is compressed."""
    data = file.read_bytes()
    if data.startswith(b"\xfd7zXZ\0"):
        target.write_bytes(lzma.decompress(data))
    elif data.startswith(b"\x1f\x8b"):
        target.write_bytes(gzip.decompress(data))
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        line = ["zstd", "--quiet", "--decompress", "--force", "-o", str(target), str(file)]
        run_tool(line, what=f"decompressing {file}")
    else:
        target.write_bytes(data)
