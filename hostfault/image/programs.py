"""Programs of the unpacked host image, run or copied without installing anything.

They are started by the image's own dynamic loader with the image's own libraries, so they run on
any distribution that has a kernel of the same architecture. :func:`seal` makes sure that QEMU, so
started, looks for its modules, firmware and data nowhere but in the image: where the machine has
a QEMU of its own, the paths that it was compiled with lead to that one's.
"""

from __future__ import annotations

import os
from pathlib import Path

from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.process import run

LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
BUNDLE = "qemu-bundle"
_UPGRADES = b"/var/run/qemu/%s"
_NOWHERE = b"/proc/self/no/%s"  # as long, and nobody can make it


def seal(root: Path) -> None:
    """Turn the unpacked image's QEMU away from the files of the machine's.

    QEMU looks for each path that it was compiled with below a directory ``qemu-bundle`` beside
    the running program, if there is one (``get_relocated_path()`` of its util/cutils.c; its own
    build tree uses it). The running program is the loader, and the bundle is the image. One path
    is exempt from that: after an upgrade Debian keeps the modules of the replaced QEMU where
    :data:`_UPGRADES` says (util/module.c), so in our copy the program names another place.

    Raises :class:`SetupError` if the loader is not in the image.
    """
    beside = (root / LOADER).resolve().parent
    if not beside.is_relative_to(root.resolve()):
        raise SetupError(f"the host image's dynamic loader leads out of it, to {beside}")
    (beside / BUNDLE).symlink_to(os.path.relpath(root.resolve(), beside))
    for program in root.glob("usr/bin/qemu-system-*"):
        if not program.is_symlink():
            program.write_bytes(program.read_bytes().replace(_UPGRADES, _NOWHERE))


def loader_argv(root: Path, program: str) -> tuple[str, ...]:
    """The start of a command line that runs ``program`` (a path in ``root``) by its own loader."""
    return (
        str(root / LOADER),
        "--inhibit-cache",
        "--library-path",
        str(root / _LIBRARIES),
        str(root / program),
    )


def libraries_of(root: Path, program: str) -> list[Path]:
    """The shared libraries that a program of the image needs, as paths relative to ``root``."""
    loader, *rest = loader_argv(root, program)
    listing = run([loader, "--list", *rest], what=f"listing the libraries of {program}")
    found = [Path(LOADER)]
    for line in listing.splitlines():
        _, arrow, target = line.partition(" => ")
        path = Path(target.split(" (")[0])
        if arrow and path.is_relative_to(root / _LIBRARIES):
            found.append(path.relative_to(root))
    return found


def applets_of(root: Path) -> list[str]:
    """The names under which the image's busybox can be called."""
    return run([str(root / "usr/bin/busybox"), "--list"], what="listing busybox's applets").split()
