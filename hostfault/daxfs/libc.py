"""System calls that Python does not wrap, through the C library. All raise OSError."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from hostfault.daxfs.wire import I64, U8, U16, U64, Wire

AT_FDCWD = -100
UTIME_NOW = (1 << 30) - 1  # in place of nanoseconds
UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
for _name in ("pread", "pwrite"):
    _function = getattr(_libc, _name)
    _function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    _function.restype = ctypes.c_ssize_t
_MAP_FAILED = ctypes.c_void_p(-1).value


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


def map_shared(fd: int, offset: int, length: int) -> int:
    """Map a part of a file for reading and writing, also beyond its end; returns the address."""
    if offset >= 1 << 63:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
    if address is None or address == _MAP_FAILED:
        _checked(-1)
    return int(address)


def unmap(address: int, length: int) -> None:
    """End a mapping."""
    _checked(_libc.munmap(address, length))


def copy_from_memory(fd: int, address: int, length: int) -> int:
    """Write memory of ours to the start of a file; returns how many bytes of it are backed."""
    return _until_fault(_libc.pwrite(fd, address, length, 0))


def copy_to_memory(fd: int, address: int, length: int) -> int:
    """Read the start of a file into memory of ours; returns how many bytes of it are backed."""
    return _until_fault(_libc.pread(fd, address, length, 0))


def _until_fault(result: int) -> int:
    if result < 0 and ctypes.get_errno() == errno.EFAULT:
        return 0
    return _checked(result)


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
