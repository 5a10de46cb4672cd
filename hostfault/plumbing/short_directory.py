"""Private directories with paths short enough for Unix sockets (unix(7): 107 bytes)."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hostfault.plumbing.errors import HostfaultError
from hostfault.plumbing.packages import run_tool

PARENT = Path("/tmp")  # noqa: S108 (what we make there is ours alone: mode 0700)
_PREFIX = "hostfault-"
_LOCK = ".in-use"


@contextmanager
def short_directory() -> Iterator[Path]:
    """One that is removed at the end, or by the next run of this user if this one is killed.

    A lock tells that it is in use: a process id means nothing in another PID namespace.
    """
    path, lock = _made_and_locked()
    try:
        yield path
    finally:
        _remove(path)
        os.close(lock)


def _made_and_locked() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=PARENT))
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink > 0:
            return path, lock
        os.close(lock)  # a sweep took it for one that was left, between the open and the lock


def sweep_short_directories(parent: Path = PARENT) -> None:
    """Remove this user's own that nobody uses any more. Never raises: another run may be at it."""
    for path in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError, HostfaultError):
            _sweep(path)


def _sweep(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return  # another user's, whatever its name says
        lock = os.open(_LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def _remove(path: Path) -> None:
    """Remove a tree; not with shutil, which is recursive: a guest decides how deep its share is."""
    run_tool(["rm", "-rf", "--", str(path)], what=f"removing {path}")
