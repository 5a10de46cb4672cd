"""Bochs, which emulates a machine with Intel's VT-x: out of Debian's packages, not installed.

Its root is apart from the host image's, and only made when somebody asks for an Intel host. It is
run by its own dynamic loader, as QEMU is (:mod:`hostfault.image.programs`).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.image.guest import build_program, compile_c
from hostfault.image.host import SUITE
from hostfault.image.programs import loader_argv
from hostfault.kernel.fetch import KEYRING, explained, mirror
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import LaunchError, SetupError
from hostfault.plumbing.mmdebstrap import mmdebstrap
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.project import IMAGES, read_list

log = logging.getLogger(__name__)

RECIPE = IMAGES / "bochs"
PRELOADED = "bochs-preload.so"  # kind in the cache, and name
START_ROM = "bochs-start.bin"  # likewise
PROGRAM = "usr/bin/bochs-bin"
PLUGINS = "usr/lib/x86_64-linux-gnu/bochs/plugins"
SHARE = "usr/share/bochs"
TERMINFO = "terminfo"
VGABIOS = "usr/share/vgabios"
_KEPT = ("lib64", "usr/lib64", PROGRAM, "usr/lib/x86_64-linux-gnu", SHARE, VGABIOS)
_TERMINFOS = ("usr/share/terminfo", "usr/lib/terminfo", "lib/terminfo")  # one, by the release
BUILD_PATIENCE = 1800.0  # seconds for mmdebstrap, on a slow network
BUILD_ROOM = 768 << 20  # bytes that mmdebstrap may need while it works
_LAYOUT = "1"  # change it when this module makes the same recipe into something else

# Where things are in the machine's memory: in reach of 32 bits, and beyond what the kernel needs
# to unpack itself (init_size of Documentation/arch/x86/boot.rst; some 60 MiB from 16 MiB on).
ROM_AT = 0xD0000  # of the option ROM: behind that of the VGA card
KERNEL_AT = 0x100000
PARAMETERS_AT = 0xC000000
INITRAMFS_AT = 0x10000000


@dataclass(frozen=True)
class Bochs:
    """An unpacked Bochs, and what is made for it."""

    key: str  # of the root
    root: Path
    preloaded: Path  # library, images/bochs/preload.c
    start: Path  # code of the option ROM, images/bochs/start.S
    say: Path  # program for the machine in it, images/bochs/say.c

    @property
    def argv(self) -> tuple[str, ...]:
        """The start of its command line."""
        loader, *rest = loader_argv(self.root, PROGRAM)
        return (loader, "--preload", str(self.preloaded), *rest)


def bochs(cache: Cache) -> Bochs:
    """Bochs, made on first use.

    Raises :class:`~hostfault.plumbing.errors.CacheMissError` if it is not there and the mirror
    cannot be reached.
    """
    recipe = "\n".join(read_list(RECIPE / "packages"))
    key = key_of({"layout": _LAYOUT, "suite": SUITE, "mirror": mirror(), "recipe": recipe})
    place = cache.obtain("bochs", key, _build_root)
    return Bochs(
        key=key,
        root=place / "root",
        preloaded=_compiled(cache, PRELOADED, "preload.c", _LIBRARY),
        start=_compiled(cache, START_ROM, "start.S", _FLAT),
        say=build_program(cache, RECIPE / "say.c"),
    )


_LIBRARY = ("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra")
_FLAT = (
    *("gcc", "-nostdlib", "-static", f"-Wl,-Ttext={ROM_AT:#x},--oformat=binary,--build-id=none"),
    *(f"-DBASE={ROM_AT:#x}", f"-DKERNEL={KERNEL_AT:#x}", f"-DPARAMETERS={PARAMETERS_AT:#x}"),
)


def _compiled(cache: Cache, name: str, source: str, line: Sequence[str]) -> Path:
    return compile_c(cache, name, [RECIPE / source], [], line)


def _build_root(place: Path) -> None:
    log.info("getting Bochs from %s", SUITE)
    archive, root = place / "root.tar", place / "root"
    _download(archive)
    whole = place / "whole"
    whole.mkdir()
    run_tool(
        ["tar", "-C", str(whole), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)],
        what="unpacking Bochs",
    )
    for name in _KEPT:
        _keep(whole / name, root / name)
    terminfo = next((each for each in _TERMINFOS if (whole / each).is_dir()), None)
    if terminfo is None:
        raise SetupError(f"ncurses-base has none of {', '.join(_TERMINFOS)}")
    _keep(whole / terminfo, root / TERMINFO)
    shutil.rmtree(whole)
    archive.unlink()


def _keep(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _download(archive: Path) -> None:
    """The packages and what they need, unpacked and not installed: no script of theirs runs."""
    packages = ",".join(read_list(RECIPE / "packages"))
    words = ["--variant=extract", "--architectures=amd64", "--format=tar", f"--include={packages}"]
    source = f"deb [signed-by={KEYRING}] {mirror()} {SUITE} main"
    try:
        mmdebstrap([*words, SUITE, str(archive), source], room=BUILD_ROOM, patience=BUILD_PATIENCE)
    except LaunchError as error:
        if "apt-get update" in error.log_tail:
            raise explained(error, "Bochs", SUITE) from error
        raise SetupError(f"Bochs could not be had\n{error}") from error
