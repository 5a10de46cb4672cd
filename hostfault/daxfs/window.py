"""The DAX window: which part of which file the front-end has mapped where.

QEMU 11.1 maps what SHMEM_MAP asks for, with three traps. It maps for writing, so it needs a
writable descriptor even for a read-only mapping. It refuses a file that is shorter than the
range. And an *empty* file it would extend on its own. Guests map ranges of 2 MiB whatever
the file's size is, and a truncated file must stay truncated. So a file that is too short is made
long enough (sparse, nothing is allocated) while QEMU maps it, and gets its length back at once:
the pages beyond its end are then mapped, but not backed, just as mmap(2) does it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hostfault.daxfs import libc
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.nodes import Node, error
from hostfault.daxfs.vhost_user import SHMEM_WRITABLE, BackendRequest, ShmemRange

SHMID = 0  # virtio-fs: the DAX window is the shared memory region 0 (VIRTIO 1.2, 5.11.5)
PAGE = 4096
ALIGNMENT = 2 << 20  # bytes, of the window's size
MAX_SIZE = 512 << 20  # each 2 MiB take one of QEMU's 509 memory slots of a vhost-user device
MAX_MAPPINGS = 256

Ask = Callable[[BackendRequest, ShmemRange, int | None], bool]
"""Ask the front-end (with a file descriptor) and wait for its answer: was it done?"""


@dataclass(frozen=True)
class Mapping:
    """A part of a file, mapped in the window. All in bytes."""

    moffset: int  # in the window
    length: int
    foffset: int  # in the file
    writable: bool


class Window:
    """All mappings."""

    def __init__(self, size: int, ask: Ask, log: EventLog) -> None:
        self.size = size
        self._ask = ask
        self._log = log
        self._mappings: dict[int, Mapping] = {}  # by moffset

    def map(self, node: Node, wanted: Mapping) -> None:
        """Map a part of a file, in place of what is mapped there. Raises OSError.

        What is mapped there stays if anything but the front-end is against it.
        """
        replaced = self._touched(wanted.moffset, wanted.length)
        if wanted.foffset % PAGE or wanted.foffset + wanted.length >= 1 << 63:
            raise error(errno.EINVAL)
        if len(self._mappings) - len(replaced) >= MAX_MAPPINGS:
            raise error(errno.ENOSPC)
        fd = node.open(os.O_RDWR)
        try:
            with _long_enough(fd, wanted.foffset + wanted.length) as st:
                for known in replaced:
                    self._unmap(known)
                done = self._ask(BackendRequest.SHMEM_MAP, _range(wanted), fd)
        finally:
            os.close(fd)
        details = _details(node, st, wanted)
        if not done:
            self._log.refused("the front-end did not map", **details)
            raise error(errno.EIO)
        self._mappings[wanted.moffset] = wanted
        self._log.event("map", begins=wanted.moffset, **details)

    def unmap(self, moffset: int, length: int) -> None:
        """Unmap all mappings in a range, which must not cut through one. Raises OSError."""
        for known in self._touched(moffset, length):
            self._unmap(known)

    def clear(self) -> None:
        """Unmap everything."""
        for known in list(self._mappings.values()):
            self._unmap(known)

    def _unmap(self, known: Mapping) -> None:
        """Unmap; a front-end that knows of no such mapping (it was reset) is right."""
        del self._mappings[known.moffset]
        done = self._ask(BackendRequest.SHMEM_UNMAP, _range(known), None)
        where = {"moffset": known.moffset, "len": known.length}
        self._log.event("unmap", ends=known.moffset, **where, known=done)

    def _touched(self, moffset: int, length: int) -> list[Mapping]:
        """The mappings in a range of the window. Raises OSError if it cuts through one."""
        if moffset % PAGE or length % PAGE or not 0 < length <= self.size - moffset:
            raise error(errno.EINVAL)
        end = moffset + length
        touched = [
            known
            for known in self._mappings.values()
            if known.moffset < end and moffset < known.moffset + known.length
        ]
        if any(known.moffset < moffset or known.moffset + known.length > end for known in touched):
            raise error(errno.EINVAL)
        return touched


def _range(mapping: Mapping) -> ShmemRange:
    flags = SHMEM_WRITABLE if mapping.writable else 0
    where = (mapping.foffset, mapping.moffset, mapping.length)
    return ShmemRange(SHMID, bytes(7), *where, flags)


def _details(node: Node, st: os.stat_result, mapping: Mapping) -> dict[str, object]:
    return {
        "node": node.number,
        "st_dev": st.st_dev,
        "st_ino": st.st_ino,
        "size": st.st_size,
        "foffset": mapping.foffset,
        "len": mapping.length,
        "moffset": mapping.moffset,
        "writable": mapping.writable,
    }


@contextmanager
def _long_enough(fd: int, length: int) -> Iterator[os.stat_result]:
    """Extend a file that is shorter than ``length`` for as long as the block runs.

    Yields its attributes of before. If someone else changes its size meanwhile, theirs stays.
    """
    before = os.fstat(fd)
    if before.st_size >= length:
        yield before
        return
    try:
        os.ftruncate(fd, length)
        yield before
    finally:
        if os.fstat(fd).st_size == length:
            os.ftruncate(fd, before.st_size)
        mtime = divmod(before.st_mtime_ns, 10**9)
        libc.utimens(f"/proc/self/fd/{fd}", (0, libc.UTIME_OMIT), mtime)
