"""The guest's memory as the front-end describes it: mapped here, and bounds-checked.

Only files that can't shrink are mapped (``memory-backend-memfd`` seals its file against it).
QEMU also announces the files in the DAX window as memory. They can be truncated at any time,
which would turn every access into a SIGBUS here, and no driver puts rings or buffers there: such
regions are known, but can't be reached.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass

from hostfault.daxfs.vhost_user import MemoryRegion
from hostfault.daxfs.wire import MalformedError

MAX_REGIONS = 509  # what GET_MAX_MEM_SLOTS answers


class OutsideMemoryError(Exception):
    """An address range that is not in the guest's memory."""


@dataclass(frozen=True)
class _Region:
    where: MemoryRegion
    view: memoryview | None  # None: not reachable from here


class GuestMemory:
    """All regions that the front-end has announced."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []

    def clear(self) -> None:
        """Forget all regions."""
        self._regions = []

    def add(self, where: MemoryRegion, fd: int) -> bool:
        """Map a region; ``fd`` stays the caller's. Returns whether it can be reached.

        Raises :class:`MalformedError` or OSError.
        """
        if len(self._regions) >= MAX_REGIONS:
            raise MalformedError(f"more than {MAX_REGIONS} memory regions")
        if max(where.guest, where.user) + where.length > 1 << 64 or not where.length:
            raise MalformedError(f"memory region of {where.length} bytes at {where.guest:#x}")
        view = _map(where, fd) if _can_not_shrink(fd) else None
        self._regions.append(_Region(where, view))
        return view is not None

    def remove(self, where: MemoryRegion) -> None:
        """Forget a region. Raises :class:`MalformedError` if there is no such one."""
        for position, region in enumerate(self._regions):
            known = region.where
            if (known.guest, known.user, known.length) == (where.guest, where.user, where.length):
                del self._regions[position]
                return
        raise MalformedError(f"no memory region of {where.length} bytes at {where.guest:#x}")

    def user_view(self, address: int, length: int) -> memoryview:
        """Memory at an address of the front-end; it must lie within one region.

        Raises :class:`OutsideMemoryError`.
        """
        for region in self._regions:
            start = address - region.where.user
            if region.view is not None and 0 <= start <= region.where.length - length:
                return region.view[start : start + length]
        raise OutsideMemoryError(f"{length} bytes at front-end address {address:#x}")

    def parts(self, address: int, length: int) -> list[memoryview]:
        """Memory at a guest physical address, in as many parts as it has regions.

        Raises :class:`OutsideMemoryError`.
        """
        found: list[memoryview] = []
        left = length
        while left:
            part = self._part(address, left)
            if part is None:
                raise OutsideMemoryError(f"{left} bytes at guest address {address:#x}")
            found.append(part)
            address += len(part)
            left -= len(part)
        return found

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a guest physical address. Raises :class:`OutsideMemoryError`."""
        return b"".join(self.parts(address, length))

    def _part(self, address: int, length: int) -> memoryview | None:
        for region in self._regions:
            start = address - region.where.guest
            if region.view is not None and 0 <= start < region.where.length:
                return region.view[start : start + length]
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
