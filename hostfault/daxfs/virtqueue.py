"""Split virtqueues, seen from the device.

Source: VIRTIO 1.2, section 2.7 (layout 2.7, descriptors 2.7.5, indirect ones 2.7.5.3, available
ring 2.7.6, used ring 2.7.8). We notify the driver always: without VIRTIO_F_EVENT_IDX "don't
notify" is only a hint, and heeding it needs a memory barrier that Python does not have. We may
give that hint to the driver, once and for all, and look into the ring ourselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from hostfault.daxfs.memory import GuestMemory
from hostfault.daxfs.vhost_user import VringAddress
from hostfault.daxfs.wire import U16, U32, U64, Wire

MAX_SIZE = 1024  # descriptors in a ring
MAX_REQUEST = (256 + 64) * 1024  # bytes that a request may bring: the longest WRITE, and more

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_AVAILABLE_RING = 4  # bytes before the first entry: flags, index
_USED_RING = 4
_USED_ENTRY = 8
_NO_NOTIFY = 1  # VRING_USED_F_NO_NOTIFY, in the flags of the used ring


class RingError(Exception):
    """The driver put something into a ring that VIRTIO does not allow."""


@dataclass(frozen=True)
class Descriptor(Wire):
    """One buffer, and where the next one is."""

    address: U64
    length: U32
    flags: U16
    next: U16


@dataclass(frozen=True)
class Chain:
    """A request: buffers to read from, then buffers to write the reply to."""

    head: int
    readable: tuple[Descriptor, ...]
    writable: tuple[Descriptor, ...]

    @property
    def capacity(self) -> int:
        """Bytes that the reply may have."""
        return sum(buffer.length for buffer in self.writable)

    def read(self, memory: GuestMemory) -> bytes:
        """The request. Raises OutsideMemoryError, NotBackedError or :class:`RingError`."""
        if sum(buffer.length for buffer in self.readable) > MAX_REQUEST:
            raise RingError(f"a request of more than {MAX_REQUEST} bytes")
        return b"".join(memory.read(buffer.address, buffer.length) for buffer in self.readable)

    def start(self, memory: GuestMemory, length: int) -> bytes:
        """The first bytes of the request, if it has as many. Raises as :meth:`read` does."""
        found = b""
        for buffer in self.readable:
            found += memory.read(buffer.address, min(buffer.length, length - len(found)))
        return found

    def write(self, memory: GuestMemory, reply: bytes) -> None:
        """Store the reply, which must not be longer than the capacity.

        Raises OutsideMemoryError or NotBackedError.
        """
        done, whole = 0, memoryview(reply)
        for buffer in self.writable:
            part = whole[done : done + buffer.length]
            memory.write(buffer.address, part)
            done += len(part)


class Virtqueue:
    """One ring: where it lies, how far it is, and whom to tell."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.address: VringAddress | None = None
        self.next = 0  # index of the next available entry; advances when a request is done
        self.enabled = False
        self.broken = False
        self.life = 0  # grows at every stop: tells a request of before from one of now
        self.kick_fd = -1
        self.call_fd = -1
        self.error_fd = -1

    @property
    def running(self) -> bool:
        """Whether requests may be taken from it."""
        placed = self.address is not None and self.size > 0
        return placed and self.enabled and self.kick_fd >= 0 and not self.broken

    def stop(self) -> int:
        """Take no more requests; returns where to go on.

        A request that is not finished counts as not begun.
        """
        self.life += 1
        self.address = None
        self.broken = False
        self.close()
        return self.next

    def close(self) -> None:
        """Close the ring's event descriptors."""
        for name in ("kick_fd", "call_fd", "error_fd"):
            self.replace_fd(name, -1)

    def replace_fd(self, name: str, fd: int) -> None:
        """Set ``kick_fd``, ``call_fd`` or ``error_fd``, and close the one before.

        Nobody waits for them here, whatever they are.
        """
        if getattr(self, name) >= 0:
            os.close(getattr(self, name))
        setattr(self, name, fd)
        if fd >= 0:
            os.set_blocking(fd, False)

    def peek(self, memory: GuestMemory) -> Chain | None:
        """The next request, which stays in the ring until :meth:`push`; None if there is none.

        Raises :class:`RingError` or OutsideMemoryError.
        """
        assert self.address is not None
        length = _AVAILABLE_RING + 2 * self.size
        available = memory.user_view(self.address.available, length).cast("H")
        waiting = (available[1] - self.next) & 0xFFFF
        if waiting > self.size:
            raise RingError(f"{waiting} requests in a ring of {self.size}")
        if not waiting:
            return None
        head = available[2 + self.next % self.size]
        return _chain(head, list(self._descriptors(memory, head)))

    def push(self, memory: GuestMemory, chain: Chain, written: int) -> None:
        """Give a request back with ``written`` bytes of reply. Raises OutsideMemoryError."""
        assert self.address is not None
        used = memory.user_view(self.address.used, _USED_RING + _USED_ENTRY * self.size)
        indices = used[:_USED_RING].cast("H")
        at = _USED_RING + _USED_ENTRY * (indices[1] % self.size)
        used[at : at + _USED_ENTRY].cast("I")[:] = memoryview(_pair(chain.head, written)).cast("I")
        indices[1] = (indices[1] + 1) & 0xFFFF  # x86 keeps the order of stores
        self.next = (self.next + 1) & 0xFFFF

    def spare_kicks(self, memory: GuestMemory) -> None:
        """Tell the driver that it need not notify us. Raises OutsideMemoryError."""
        assert self.address is not None
        memory.user_view(self.address.used, _USED_RING).cast("H")[0] = _NO_NOTIFY

    def notify(self) -> None:
        """Tell the driver that something was used."""
        _signal(self.call_fd)

    def fail(self) -> None:
        """Serve it no more until it is set up anew, and tell the front-end."""
        self.broken = True
        _signal(self.error_fd)

    def _descriptors(self, memory: GuestMemory, head: int) -> Iterator[Descriptor]:
        """The chain from ``head`` on, with the entries of an indirect table in its place."""
        assert self.address is not None
        length = Descriptor.width() * self.size
        table = bytes(memory.user_view(self.address.descriptors, length))
        for found in self._walk(table, head):
            if not found.flags & _INDIRECT:
                yield found
                continue
            if found.flags & (_NEXT | _WRITE) or found.length % Descriptor.width():
                raise RingError(f"indirect descriptor with flags {found.flags:#x}")
            if not 0 < found.length <= length:
                raise RingError(f"indirect table of {found.length} bytes")
            inner = memory.read(found.address, found.length)
            yield from self._walk(inner, 0, within=True)

    def _walk(self, table: bytes, index: int, *, within: bool = False) -> Iterator[Descriptor]:
        count = len(table) // Descriptor.width()
        for _ in range(count):
            if index >= count:
                raise RingError(f"descriptor {index} of {count}")
            found = Descriptor.decode(table, index * Descriptor.width())
            if within and found.flags & _INDIRECT:
                raise RingError("indirect descriptor in an indirect table")
            yield found
            if not found.flags & _NEXT:
                return
            index = found.next
        raise RingError("descriptors in a loop")


def _chain(head: int, buffers: list[Descriptor]) -> Chain:
    """Sort a chain's buffers; the readable ones must come first (2.7.4.2)."""
    readable = tuple(buffer for buffer in buffers if not buffer.flags & _WRITE)
    writable = tuple(buffer for buffer in buffers if buffer.flags & _WRITE)
    if buffers != [*readable, *writable]:
        raise RingError("a readable buffer after a writable one")
    return Chain(head, readable, writable)


def _pair(first: int, second: int) -> bytes:
    return first.to_bytes(4, "little") + second.to_bytes(4, "little")


def _signal(fd: int) -> None:
    if fd >= 0:
        with suppress(OSError):  # full, or not an eventfd: the front-end's own trouble
            os.write(fd, (1).to_bytes(8, "little"))
