"""The guest's memory as the front-end describes it: mapped here, and bounds-checked.

Most of it is files that can't shrink (``memory-backend-memfd`` seals its file against it). Rings
are looked for in these only.

QEMU also announces what is mapped in the DAX window. A guest's kernel puts requests' data there
whenever a task writes from, or reads into, its mapping of a file on the mount. Such a file can be
truncated at any time, and every access of our own to a page that is gone would be a SIGBUS. So
here system calls copy, between the mapping and a memory file: for them such a page is EFAULT. And
unlike pwrite(2) on the file, they never make it longer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hostfault.daxfs import libc
from hostfault.daxfs.vhost_user import MemoryRegion
from hostfault.daxfs.wire import MalformedError

MAX_REGIONS = 509  # what GET_MAX_MEM_SLOTS answers


class OutsideMemoryError(Exception):
    """An address range that is not in the guest's memory."""


class NotBackedError(Exception):
    """An address range in the guest's memory that the host can't back now."""


class _Store(Protocol):
    """What a region's bytes are in."""

    def read(self, start: int, length: int) -> bytes:
        """Bytes of it. Raises :class:`NotBackedError`."""

    def write(self, start: int, data: memoryview) -> None:
        """Set bytes of it. Raises :class:`NotBackedError`."""

    def close(self) -> None:
        """Let go of it."""


@dataclass(frozen=True)
class _Steady:
    """Memory that stays."""

    view: memoryview

    def read(self, start: int, length: int) -> bytes:
        return bytes(self.view[start : start + length])

    def write(self, start: int, data: memoryview) -> None:
        self.view[start : start + len(data)] = data

    def close(self) -> None:
        """The mapping ends with the last view of it."""


@dataclass(frozen=True)
class _Fleeting:
    """Pages of a file that may be truncated; only system calls touch them."""

    address: int  # of the mapping, in this process
    length: int
    bounce: int  # descriptor of a memory file to copy from and to

    def read(self, start: int, length: int) -> bytes:
        copied = libc.copy_from_memory(self.bounce, self.address + start, length)
        if copied < length:
            raise NotBackedError(f"{length} bytes in the window, {copied} of them are there")
        return os.pread(self.bounce, length, 0)

    def write(self, start: int, data: memoryview) -> None:
        os.pwrite(self.bounce, data, 0)
        copied = libc.copy_to_memory(self.bounce, self.address + start, len(data))
        if copied < len(data):
            raise NotBackedError(f"{len(data)} bytes in the window, {copied} of them are there")

    def close(self) -> None:
        libc.unmap(self.address, self.length)


class _Nothing:
    """What the front-end can map and we can't."""

    def read(self, start: int, length: int) -> bytes:
        raise NotBackedError(f"{length} bytes at {start:#x} of a file that can't be mapped")

    def write(self, start: int, data: memoryview) -> None:
        raise NotBackedError(f"{len(data)} bytes at {start:#x} of a file that can't be mapped")

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass(frozen=True)
class _Region:
    where: MemoryRegion
    store: _Store


class GuestMemory:
    """All regions that the front-end has announced."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []
        self._bounce = os.memfd_create("hostfault-bounce", os.MFD_CLOEXEC)

    def regions(self) -> list[MemoryRegion]:
        """What it consists of."""
        return [region.where for region in self._regions]

    def add(self, where: MemoryRegion, fd: int) -> bool:
        """Map a region; ``fd`` stays the caller's. Returns whether it is there to stay.

        Raises :class:`MalformedError` or OSError.
        """
        if len(self._regions) >= MAX_REGIONS:
            raise MalformedError(f"more than {MAX_REGIONS} memory regions")
        if max(where.guest, where.user) + where.length > 1 << 64 or not where.length:
            raise MalformedError(f"memory region of {where.length} bytes at {where.guest:#x}")
        steady = _can_not_shrink(fd)
        store = _Steady(_map(where, fd)) if steady else self._fleeting(where, fd)
        self._regions.append(_Region(where, store))
        return steady

    def _fleeting(self, where: MemoryRegion, fd: int) -> _Store:
        try:
            address = libc.map_shared(fd, where.offset, where.length)
        except OSError:
            return _Nothing()
        return _Fleeting(address, where.length, self._bounce)

    def remove(self, where: MemoryRegion) -> None:
        """Forget a region. Raises :class:`MalformedError` if there is no such one."""
        for position, region in enumerate(self._regions):
            if region.where.key == where.key:
                del self._regions[position]
                region.store.close()
                return
        raise MalformedError(f"no memory region of {where.length} bytes at {where.guest:#x}")

    def user_view(self, address: int, length: int) -> memoryview:
        """Memory at an address of the front-end; it must lie within one region that stays.

        Raises :class:`OutsideMemoryError`.
        """
        for region in self._regions:
            start = address - region.where.user
            if isinstance(region.store, _Steady) and 0 <= start <= region.where.length - length:
                return region.store.view[start : start + length]
        raise OutsideMemoryError(f"{length} bytes at front-end address {address:#x}")

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a guest physical address.

        Raises :class:`OutsideMemoryError` or :class:`NotBackedError`.
        """
        return b"".join(
            region.store.read(start, count) for region, start, count in self._parts(address, length)
        )

    def write(self, address: int, data: memoryview) -> None:
        """Set bytes at a guest physical address.

        Raises :class:`OutsideMemoryError` or :class:`NotBackedError`; some may be set by then.
        """
        done = 0
        for region, start, count in self._parts(address, len(data)):
            region.store.write(start, data[done : done + count])
            done += count

    def _parts(self, address: int, length: int) -> Iterator[tuple[_Region, int, int]]:
        """In which regions a range lies: region, first byte in it, number of bytes."""
        while length:
            region = self._at(address)
            if region is None:
                raise OutsideMemoryError(f"{length} bytes at guest address {address:#x}")
            start = address - region.where.guest
            count = min(length, region.where.length - start)
            yield region, start, count
            address += count
            length -= count

    def _at(self, address: int) -> _Region | None:
        for region in self._regions:
            if 0 <= address - region.where.guest < region.where.length:
                return region
        return None


def _can_not_shrink(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False  # not a memory file


def _map(where: MemoryRegion, fd: int) -> memoryview:
    if where.offset + where.length > os.fstat(fd).st_size:
        raise MalformedError(f"memory region of {where.length} bytes is longer than its file")
    end = where.offset + where.length
    return memoryview(mmap.mmap(fd, end))[where.offset :]
