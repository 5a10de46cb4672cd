"""A scripted vhost-user front-end with a virtiofs driver in it, for the daemon's tests.

It plays QEMU (messages, guest memory, the DAX window) and the guest (rings, FUSE requests), and
spells every structure out anew: what it shares with the daemon is the protocol, not the code.
"""

from __future__ import annotations

import array
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.plumbing.deadline import Deadline

GUEST = 0x1_0000_0000  # guest address of the first byte of memory
USER = 0x7F00_0000_0000  # the front-end's address of it
MEMORY = 2 << 20
HALF = MEMORY // 2  # the memory is announced as two regions, so that buffers can straddle them
RING = 16  # entries
NEXT, WRITE, INDIRECT = 1, 2, 4
REQUEST_AT, REPLY_AT, TABLE_AT = 0x10000, 0x80000, 0x9000
WINDOW = 64 << 20
RANGE = 2 << 20  # what Linux maps at a time
PATIENCE = 10.0  # seconds for anything

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 16, 17
SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG = 18, 21, 24, 25
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, GET_SHMEM_CONFIG = 36, 37, 38, 44
SHMEM_MAP, SHMEM_UNMAP = 9, 10

FEATURES = 1 << 32 | 1 << 30 | 1 << 28
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 15 | 1 << 22


@dataclass(frozen=True)
class Asked:
    """A SHMEM_MAP or SHMEM_UNMAP that the daemon sent."""

    request: int
    shmid: int
    foffset: int
    moffset: int
    length: int
    flags: int
    inode: int | None  # of the file that came with it
    size: int | None  # of that file at that moment


class FrontEnd:
    """The front-end's two sockets, its memory and its rings."""

    entries = RING

    def __init__(self, main: socket.socket, daemon: subprocess.Popen[bytes], log: Path) -> None:
        self.main = main
        self.main.settimeout(PATIENCE)
        self.daemon = daemon
        self.log = log
        self.backend, self.backend_theirs = socket.socketpair()
        self.backend.settimeout(PATIENCE)
        self.fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, MEMORY)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self.memory = mmap.mmap(self.fd, MEMORY)
        # Stores an index at once. struct would store it byte by byte, and the daemon looks on.
        self.halves = memoryview(self.memory).cast("H")
        self.kicks = [os.eventfd(0) for _ in range(2)]
        self.calls = [os.eventfd(0) for _ in range(2)]
        self.errors = [os.eventfd(0) for _ in range(2)]
        self.asked: list[Asked] = []
        self.before_answer: Callable[[Asked], None] = lambda asked: None
        self.answer = 0  # to SHMEM_MAP and SHMEM_UNMAP; 0 is "done"

    def close(self) -> None:
        """Hang up and close everything."""
        self.halves.release()
        for thing in (self.main, self.backend, self.backend_theirs, self.memory):
            thing.close()
        for fd in (self.fd, *self.kicks, *self.calls, *self.errors):
            with suppress(OSError):
                os.close(fd)

    # --- messages ---------------------------------------------------------------------

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, ack: bool = True
    ) -> None:
        """Send a message."""
        self.send_raw(struct.pack("<III", request, 9 if ack else 1, len(payload)) + payload, fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.main.sendmsg([data], rights)

    def receive(self) -> tuple[int, int, bytes]:
        """The next message on the main socket: request, flags, payload."""
        request, flags, length = struct.unpack("<III", self._exactly(12))
        return request, flags, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.main.recv(length - len(data))
            assert part, "the daemon hung up"
            data += part
        return data

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a message and return what it is answered with."""
        self.send(request, payload, fds)
        answered, flags, reply = self.receive()
        assert (answered, flags) == (request, 5)
        return reply

    def number(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a message that is answered with a number (0: done)."""
        return int(struct.unpack("<Q", self.ask(request, payload, fds))[0])

    def ended(self) -> int:
        """Wait until the daemon has ended; returns its exit code."""
        with suppress(ConnectionResetError):
            while self.main.recv(4096):
                pass
        return self.daemon.wait(PATIENCE)

    def open_descriptors(self) -> int:
        """How many files the daemon has open."""
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about one event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def refusals(self) -> str:
        """All reasons in the log, for searching."""
        return "\n".join(line["reason"] for line in self.events("refused"))

    # --- setting up -------------------------------------------------------------------

    def negotiate(self) -> None:
        """Agree on features, as QEMU does."""
        self.send(SET_FEATURES, struct.pack("<Q", FEATURES), ack=False)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", PROTOCOL_FEATURES), ack=False)
        fds = (self.backend_theirs.fileno(),)
        assert self.number(SET_BACKEND_REQ_FD, b"", fds) == 0
        assert self.number(SET_OWNER) == 0

    def add_memory(self) -> None:
        """Announce the guest's memory in two parts."""
        for start in (0, HALF):
            region = struct.pack("<5Q", 0, GUEST + start, HALF, USER + start, start)
            assert self.number(ADD_MEM_REG, region, (self.fd,)) == 0

    def start_ring(self, index: int, base: int = 0, at: int | None = None) -> None:
        """Set up and start a ring."""
        user = USER + (ring_at(index) if at is None else at)
        address = struct.pack("<II4Q", index, 0, user, user + 0x2000, user + 0x1000, 0)
        for request, payload, fds in (
            (SET_VRING_NUM, struct.pack("<II", index, self.entries), ()),
            (SET_VRING_BASE, struct.pack("<II", index, base), ()),
            (SET_VRING_ADDR, address, ()),
            (SET_VRING_CALL, struct.pack("<Q", index), (self.calls[index],)),
            (SET_VRING_ERR, struct.pack("<Q", index), (self.errors[index],)),
            (SET_VRING_KICK, struct.pack("<Q", index), (self.kicks[index],)),
            (SET_VRING_ENABLE, struct.pack("<II", index, 1), ()),
        ):
            assert self.number(request, payload, fds) == 0

    def stop_ring(self, index: int) -> int:
        """Stop a ring; returns where to go on."""
        reply = self.ask(GET_VRING_BASE, struct.pack("<II", index, 0))
        answered, base = struct.unpack("<II", reply)
        assert answered == index
        return int(base)

    def start_without_channel(self) -> None:
        """Everything up to running rings, but no socket for the daemon's own requests."""
        self.send(SET_FEATURES, struct.pack("<Q", FEATURES), ack=False)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", PROTOCOL_FEATURES), ack=False)
        self.add_memory()
        for index in range(2):
            self.start_ring(index)

    def start(self) -> None:
        """Everything up to running rings."""
        self.negotiate()
        self.add_memory()
        for index in range(2):
            self.start_ring(index)

    # --- rings ------------------------------------------------------------------------

    def u16(self, at: int, value: int | None = None) -> int:
        """A 16-bit number in the guest's memory, after setting it if a value is given."""
        if value is not None:
            self.halves[at // 2] = value
        return self.halves[at // 2]

    def describe(self, index: int, buffers: Sequence[tuple[int, int, int, int]]) -> None:
        """Fill descriptors (address, length, flags, next) from the first one on."""
        for position, buffer in enumerate(buffers):
            struct.pack_into("<QIHH", self.memory, ring_at(index) + 16 * position, *buffer)

    def offer(self, index: int, head: int = 0, ahead: int = 1) -> None:
        """Make a chain available and kick."""
        available = ring_at(index) + 0x1000
        count = self.u16(available + 2)
        self.u16(available + 4 + 2 * (count % self.entries), head)
        self.u16(available + 2, (count + ahead) & 0xFFFF)
        os.eventfd_write(self.kicks[index], 1)

    def used(self, index: int) -> int:
        """How many chains came back."""
        return self.u16(ring_at(index) + 0x2002)

    def wait_used(self, index: int, before: int) -> int:
        """Serve the daemon's own requests until a chain came back; returns its length."""
        deadline = Deadline(PATIENCE, f"a used chain in ring {index}")
        while self.used(index) == before:
            self._serve(deadline, self.calls[index])
        entry = ring_at(index) + 0x2004 + 8 * (before % self.entries)
        return int(struct.unpack_from("<II", self.memory, entry)[1])

    def wait_broken(self, index: int) -> None:
        """Wait until the daemon gave a ring up."""
        self._serve(Deadline(PATIENCE, f"an error of ring {index}"), self.errors[index])

    def _serve(self, deadline: Deadline, event: int) -> None:
        """Wait for an event; answer what the daemon asks meanwhile."""
        poll = select.poll()
        poll.register(event, select.POLLIN)
        poll.register(self.backend, select.POLLIN)
        poll.register(self.main, 0)  # tells of its end only
        for fd, _ in poll.poll(1000 * deadline.left()):
            if fd == self.main.fileno():
                raise ConnectionResetError("the daemon hung up")
            if fd == event:
                os.eventfd_read(event)
            else:
                self.serve_backend()
        deadline.check()

    def read_backend(self) -> Asked:
        """Read one request of the daemon."""
        data, fds, _, _ = socket.recv_fds(self.backend, 52, 4)
        request, flags, length = struct.unpack_from("<III", data)
        assert (flags, length) == (9, 40)
        stats = [os.fstat(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
        inode, size = (stats[0].st_ino, stats[0].st_size) if stats else (None, None)
        return Asked(request, *struct.unpack_from("<B7x4Q", data, 12), inode=inode, size=size)

    def answer_backend(self, asked: Asked) -> None:
        """Answer one request of the daemon."""
        self.backend.sendall(struct.pack("<IIIQ", asked.request, 5, 8, self.answer))

    def serve_backend(self) -> None:
        """Record and answer one request of the daemon."""
        asked = self.read_backend()
        self.asked.append(asked)
        self.before_answer(asked)
        self.answer_backend(asked)

    # --- FUSE -------------------------------------------------------------------------

    def put_request(self, opcode: int, node: int, body: bytes, **header: int) -> int:
        """Write a request into memory; returns its length."""
        length = 40 + len(body)
        fields = {"length": length, "unique": 7, "uid": 0, "gid": 0} | header
        head = struct.pack(
            "<IIQQIIIHH",
            fields["length"],
            opcode,
            fields["unique"],
            node,
            fields["uid"],
            fields["gid"],
            1,
            0,
            0,
        )
        self.memory[REQUEST_AT : REQUEST_AT + length] = head + body
        return length

    def fuse(
        self, opcode: int, node: int = 1, body: bytes = b"", room: int = 8192, **header: int
    ) -> bytes:
        """Do a FUSE request; returns the answer or raises the OSError that it is."""
        length = self.put_request(opcode, node, body, **header)
        before = self.used(1)
        self.describe(
            1,
            [
                (GUEST + REQUEST_AT, 40, NEXT, 1),
                (GUEST + REQUEST_AT + 40, length - 40, NEXT, 2),
                (GUEST + REPLY_AT, 16, NEXT | WRITE, 3),
                (GUEST + REPLY_AT + 16, room, WRITE, 0),
            ],
        )
        self.offer(1)
        written = self.wait_used(1, before)
        reply = self.memory[REPLY_AT : REPLY_AT + written]
        size, error, unique = struct.unpack_from("<IiQ", reply)
        assert (size, unique) == (written, 7)
        if error:
            assert written == 16
            raise OSError(-error, os.strerror(-error))
        return bytes(reply[16:])

    def tell(self, opcode: int, node: int, body: bytes) -> None:
        """Do a FUSE request that has no reply, in the high-priority ring."""
        length = self.put_request(opcode, node, body)
        before = self.used(0)
        self.describe(0, [(GUEST + REQUEST_AT, length, 0, 0)])
        self.offer(0)
        assert self.wait_used(0, before) == 0


def ring_at(index: int) -> int:
    """Where a ring lies in memory: descriptors, available ring, used ring, 4 KiB each."""
    return 0x3000 * index
