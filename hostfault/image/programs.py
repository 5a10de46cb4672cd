"""Programs of the unpacked host image, run or copied without installing anything.

They are started by the image's own dynamic loader with the image's own libraries, so they run on
any distribution that has a kernel of the same architecture.
"""

from __future__ import annotations

from pathlib import Path

from hostfault.process import run

_LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def loader_argv(root: Path, program: str) -> tuple[str, ...]:
    """The start of a command line that runs ``program`` (a path in ``root``) by its own loader."""
    return (
        str(root / _LOADER),
        "--library-path",
        str(root / _LIBRARIES),
        str(root / program),
    )


def libraries_of(root: Path, program: str) -> list[Path]:
    """The shared libraries that a program of the image needs, as paths relative to ``root``."""
    loader, *rest = loader_argv(root, program)
    listing = run([loader, "--list", *rest], what=f"listing the libraries of {program}")
    found = [Path(_LOADER)]
    for line in listing.splitlines():
        _, arrow, target = line.partition(" => ")
        path = Path(target.split(" (")[0])
        if arrow and path.is_relative_to(root / _LIBRARIES):
            found.append(path.relative_to(root))
    return found


def applets_of(root: Path) -> list[str]:
    """The names under which the image's busybox can be called."""
    return run([str(root / "usr/bin/busybox"), "--list"], what="listing busybox's applets").split()
