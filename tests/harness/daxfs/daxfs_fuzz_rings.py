"""Rings that a driver fills with whatever it likes, while it goes on changing them or not."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import daxfs_frontend
from daxfs_frontend import (
    ADD_MEM_REG,
    GUEST,
    HALF,
    INDIRECT,
    MEMORY,
    NEXT,
    REPLY_AT,
    REQUEST_AT,
    RING,
    TABLE_AT,
    WRITE,
    ring_at,
)
from daxfs_guest import ROOT, Guest, io
from daxfs_served import (
    MAX_GROWTH,
    FoundError,
    LeakError,
    Sandbox,
    check_end,
    served,
    timed,
)
from hypothesis import strategies as st

from hostfault.plumbing.deadline import Deadline, poll

WINDOW_GUEST, WINDOW_USER, WINDOW_LENGTH = 0xF800_0000, 0x7E00_0000_0000, 1 << 20
ENTRIES = 8  # descriptors that are given; the ring has more

addresses = st.one_of(
    st.sampled_from(
        [
            GUEST + REQUEST_AT,
            GUEST + REQUEST_AT + 40,
            GUEST + REPLY_AT,
            GUEST + TABLE_AT,
            GUEST + ring_at(1),
            GUEST + HALF - 20,
            GUEST + MEMORY - 20,
            GUEST + MEMORY,
            WINDOW_GUEST,
            WINDOW_GUEST + 4096 - 20,  # what is there, and then what is gone
            WINDOW_GUEST + WINDOW_LENGTH - 20,
            0,
            (1 << 64) - 8,
        ]
    ),
    st.integers(GUEST, GUEST + MEMORY),
    st.integers(0, (1 << 64) - 1),
)
lengths = st.one_of(
    st.sampled_from(
        [0, 1, 16, 32, 40, 56, 80, 120, 4096, 1 << 16, 1 << 20, 1 << 31, (1 << 32) - 1]
    ),
    st.integers(0, 200),
)
flags = st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, 0xFFFF])
descriptors = st.tuples(addresses, lengths, flags, st.integers(0, ENTRIES + 1))
tables = st.lists(descriptors, min_size=1, max_size=ENTRIES)
chains = st.one_of(
    tables,
    # One that is as it should be, up to a point.
    st.tuples(st.sampled_from([40, 56, 80]), addresses, lengths, descriptors).map(
        lambda drawn: [
            (GUEST + REQUEST_AT, drawn[0], NEXT, 1),
            (drawn[1], drawn[2], NEXT | WRITE, 2),
            drawn[3],
        ]
    ),
    st.tuples(addresses, lengths).map(
        lambda drawn: [
            (GUEST + REQUEST_AT, 80, NEXT, 1),
            (drawn[0], drawn[1], NEXT, 2),
            (GUEST + REPLY_AT, 200, WRITE, 0),
        ]
    ),
)
requests = st.sampled_from([1, 3, 15, 16, 27, 28, 44, 48, 49])


@dataclass(frozen=True)
class Filled:
    """What a driver does to a ring."""

    chain: list[tuple[int, int, int, int]]
    table: list[tuple[int, int, int, int]]  # where indirect descriptors may lead
    opcode: int  # of a request that is in memory
    head: int
    ahead: int  # how many requests are made available
    race: bool  # whether descriptors change meanwhile


heads = st.one_of(st.just(0), st.integers(0, ENTRIES), st.integers(0, 0xFFFF))
counts = st.one_of(st.integers(1, RING), st.integers(0, 0xFFFF))
cases = st.lists(
    st.builds(Filled, chains, tables, requests, heads, counts, st.booleans()),
    min_size=1,
    max_size=8,
)


@contextmanager
def session() -> Iterator[Session]:
    """A guest and what is known of its daemon, for as many cases as find nothing."""
    sandbox = Sandbox()
    try:
        (sandbox.shared / "file").write_bytes(b"x" * WINDOW_LENGTH)
        (sandbox.shared / "gone").write_bytes(b"g" * WINDOW_LENGTH)
        with served(sandbox) as guest:
            yield Session(guest, sandbox)
    finally:
        sandbox.close()


class Session:
    """One daemon."""

    def __init__(self, guest: Guest, sandbox: Sandbox) -> None:
        self.guest, self.sandbox = guest, sandbox
        guest.start()
        guest.init()
        os.set_blocking(guest.errors[1], False)
        self.announce()
        self.node = guest.lookup(b"file")
        self.handle = guest.open(self.node)
        self.descriptors = guest.open_descriptors()
        self.memory = guest.daemon.memory()  # type: ignore[attr-defined]

    def announce(self) -> None:
        """A file in the window of which the host has cut off all but the first page."""
        gone = self.sandbox.shared / "gone"
        region = struct.pack("<5Q", 0, WINDOW_GUEST, WINDOW_LENGTH, WINDOW_USER, 0)
        with gone.open("rb+") as stream:
            assert self.guest.number(ADD_MEM_REG, region, (stream.fileno(),)) == 0
        os.truncate(gone, 4096)

    def request(self, opcode: int) -> None:
        """A request that makes sense, in memory."""
        bodies = {
            1: b"file\0".ljust(40, b"\0"),
            27: struct.pack("<II", 0, 0),
            48: struct.pack("<5Q", (1 << 64) - 1, 0, 4096, 2, 0),
            49: struct.pack("<IQQ", 1, 0, 4096),
        }
        body = bodies.get(opcode, io(self.handle, 0, 64))
        self.guest.put_request(opcode, ROOT if opcode in (1, 27, 28, 44) else self.node, body)

    def fill(self, case: Filled) -> None:
        """Make something available, and wait until the daemon is through with it."""
        guest = self.guest
        self.request(case.opcode)
        data = b"".join(struct.pack("<QIHH", *each) for each in case.table)
        guest.memory[TABLE_AT : TABLE_AT + len(data)] = data
        guest.describe(1, case.chain)
        before = guest.used(1)
        enough = threading.Event()
        racer = threading.Thread(target=self.scribble, args=(enough, case.chain), daemon=True)
        if case.race:
            racer.start()
        try:
            guest.offer(1, case.head, case.ahead)
            timed(guest, lambda: self.settle(before, case.ahead))
        finally:
            enough.set()
            if case.race:
                racer.join(10)

    def scribble(self, enough: threading.Event, chain: list[tuple[int, int, int, int]]) -> None:
        """Change descriptors as fast as a driver can."""
        while not enough.is_set():
            for position, (address, length, _, _) in enumerate(chain):
                self.guest.describe(1, [*chain[:position], (address, length ^ 0x11, NEXT, 0)])
            self.guest.describe(1, chain)

    def settle(self, before: int, ahead: int) -> None:
        """Wait until all that was made available is answered, or the ring given up."""
        guest = self.guest
        deadline = Deadline(daxfs_frontend.PATIENCE, "the ring to be done with")

        def look() -> bool | None:
            with suppress(BlockingIOError):
                os.eventfd_read(guest.errors[1])
                return True
            deadline.saw(f"{(guest.used(1) - before) & 0xFFFF} of {ahead} answered")
            for fd, event in look_at.poll(0):
                if fd == guest.backend.fileno():
                    guest.serve_backend()
                elif event & select.POLLHUP:
                    raise ConnectionResetError("the daemon hung up")
            return True if (guest.used(1) - before) & 0xFFFF >= ahead else None

        look_at = select.poll()
        look_at.register(guest.backend, select.POLLIN)
        look_at.register(guest.main, 0)
        poll(deadline, look, interval=0.0005)

    def mend(self) -> None:
        """Set the ring up anew; then it must serve, whatever was in it."""
        guest = self.guest
        timed(guest, lambda: guest.stop_ring(1))
        start = ring_at(1)
        guest.memory[start : start + 0x3000] = bytes(0x3000)
        guest.start_ring(1)
        with suppress(BlockingIOError):
            os.eventfd_read(guest.errors[1])
        if timed(guest, guest.getattr).inode != self.sandbox.shared.stat().st_ino:
            raise FoundError("the root is no longer the root")

    def check(self) -> None:
        """What must hold after each case."""
        timed(self.guest, self.guest.init)
        self.node = self.guest.lookup(b"file")
        self.handle = self.guest.open(self.node)
        if self.guest.open_descriptors() != self.descriptors:
            raise LeakError(f"{self.guest.open_descriptors()}, not {self.descriptors} descriptors")
        if self.guest.daemon.memory() - self.memory > MAX_GROWTH:  # type: ignore[attr-defined]
            raise LeakError("it takes more memory than at the start")
        if (self.sandbox.shared / "gone").stat().st_size != 4096:
            raise FoundError("a file that was truncated is longer again")
        self.sandbox.check()


class Sessions:
    """One daemon for all cases, until something is found: then the next case has a new one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._session: Session | None = None

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            check_end(self._session.guest, self._session.sandbox)
        self._stack.close()

    def do(self, case: Sequence[Filled]) -> int:
        """One case; returns how many rings were filled."""
        current = self._session or self._stack.enter_context(session())
        self._session = None  # until the case has gone well
        try:
            for filled in case:
                current.fill(filled)
                current.mend()
            current.check()
        except BaseException:
            self._stack.close()
            raise
        self._session = current
        return len(case)
