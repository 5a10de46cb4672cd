"""System calls that Python does not wrap, through the C library. All raise OSError."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

from hostfault.daxfs.wire import I64, U8, U16, U64, Wire

AT_FDCWD = -100
UTIME_NOW = (1 << 30) - 1  # in place of nanoseconds
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_long))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Like os.posix_fallocate, with a mode."""
    _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def utimens(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times as (seconds, nanoseconds): os.utime has no UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0))


def rename(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int) -> None:
    """Rename with flags, by renameat2(2)."""
    _checked(_libc.renameat2(old_dir, old, new_dir, new, flags))


def syncfs(fd: int) -> None:
    """Write back everything in a file system."""
    _checked(_libc.syncfs(fd))


@dataclass(frozen=True)
class _Dirent(Wire):
    """struct linux_dirent64 of getdents64(2), before the name."""

    inode: U64
    offset: I64
    length: U16
    kind: U8


@dataclass(frozen=True)
class DirectoryEntry:
    """One name in a directory."""

    inode: int
    offset: int  # where to go on behind it
    kind: int  # DT_*
    name: bytes


def read_directory(fd: int, offset: int) -> Iterator[DirectoryEntry]:
    """The entries from ``offset`` on (0, or the offset of an entry)."""
    os.lseek(fd, offset, os.SEEK_SET)
    buffer = ctypes.create_string_buffer(16 * 1024)
    while length := _checked(_libc.getdents64(fd, buffer, ctypes.c_size_t(len(buffer)))):
        data = buffer.raw[:length]
        at = 0
        while at < length:
            entry = _Dirent.decode(data, at)
            name = data[at + _Dirent.width() : at + entry.length].split(b"\0", 1)[0]
            yield DirectoryEntry(entry.inode, entry.offset, entry.kind, name)
            at += entry.length
