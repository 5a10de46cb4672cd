"""vhost-user messages from a front-end that has lost its mind."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from daxfs_frontend import (
    FEATURES,
    GET_MAX_MEM_SLOTS,
    GUEST,
    MEMORY,
    PROTOCOL_FEATURES,
    RING,
    USER,
)
from daxfs_guest import Guest
from daxfs_served import (
    BROKE_PROTOCOL,
    FoundError,
    Sandbox,
    check_end,
    served,
    timed,
)
from hypothesis import strategies as st

REQUESTS = (1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 25, 37, 38, 44)
words = st.one_of(
    st.sampled_from([0, 1, 2, 3, 15, 16, 40, 256, 0x100, 0x101, 1 << 31, (1 << 32) - 1]),
    st.integers(0, (1 << 32) - 1),
)
quads = st.sampled_from(
    [
        *(0, 1, 2, 0x100, 4096, MEMORY, GUEST, USER, USER + 0x1000, USER + 0x2000, FEATURES),
        *(PROTOCOL_FEATURES, 1 << 63, (1 << 63) - 4096, (1 << 64) - 4096, (1 << 64) - 1),
    ]
)
payloads = st.one_of(
    st.lists(words, max_size=8).map(lambda values: struct.pack(f"<{len(values)}I", *values)),
    st.lists(quads, max_size=8).map(lambda values: struct.pack(f"<{len(values)}Q", *values)),
    st.tuples(st.integers(0, 3), st.lists(quads, max_size=12)).map(
        lambda drawn: struct.pack(f"<II{len(drawn[1])}Q", drawn[0], 0, *drawn[1])
    ),
    st.integers(0, 2).map(  # a ring as it should be
        lambda index: struct.pack("<II4Q", index, 0, USER, USER + 0x2000, USER + 0x1000, 0)
    ),
    st.integers(0, 2).map(lambda index: struct.pack("<II", index, RING)),
    st.binary(max_size=300),
)
kinds = st.sampled_from(
    ["memory", "short", "event", "full", "pipe", "other end", "socket", "null", "folder"]
)
descriptors = st.integers(0, 99).flatmap(
    lambda draw: st.lists(kinds, max_size=10 if draw < 5 else 1)
)
index = st.integers(0, 2)


def numbered(layout: str, *fields: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    """A structure of such fields."""
    return st.tuples(*fields).map(lambda values: struct.pack(layout, *values))


regions = numbered("<4Q", quads, quads, quads, quads)
good_region = struct.pack("<4Q", GUEST, MEMORY, USER, 0)
proper = st.one_of(  # requests with what belongs to them: payload, descriptors
    *(st.tuples(st.just(n), st.just(b""), st.just([])) for n in (1, 3, 4, 15, 17, 44)),
    *(st.tuples(st.just(n), numbered("<Q", quads), st.just([])) for n in (2, 16)),
    *(st.tuples(st.just(n), numbered("<II", index, words), st.just([])) for n in (8, 10, 11, 18)),
    st.tuples(st.just(9), numbered("<II4Q", index, words, quads, quads, quads, quads), st.just([])),
    *(
        st.tuples(st.just(n), numbered("<Q", words), st.lists(kinds, max_size=1))
        for n in (12, 13, 14)
    ),
    st.tuples(st.just(21), st.just(b""), st.just(["socket"])),
    st.tuples(st.just(24), numbered("<III", words, words, words), st.just([])),
    *(
        st.tuples(
            st.just(n),
            st.one_of(regions, st.just(good_region)).map(lambda region: bytes(8) + region),
            st.lists(kinds, min_size=n == 37, max_size=1),
        )
        for n in (37, 38)
    ),
    st.lists(st.tuples(st.one_of(regions, st.just(good_region)), kinds), max_size=3).map(
        lambda drawn: (
            5,
            struct.pack("<II", len(drawn), 0) + b"".join(region for region, _ in drawn),
            [kind for _, kind in drawn],
        )
    ),
)
any_request = st.one_of(st.sampled_from(REQUESTS), words.filter(lambda n: n != GET_MAX_MEM_SLOTS))
messages = st.tuples(
    st.one_of(proper, proper, st.tuples(any_request, payloads, descriptors)),
    st.sampled_from([9] * 15 + [1, 5, 13, 0, 2, 0xFFFFFFFF]),
    st.integers(0, 999).map(lambda n: n if 0 < n < 40 else None),  # bytes sent, if not all
)
cases = st.tuples(
    st.sampled_from([True, True, True, False]),  # whether all is agreed on before
    st.lists(messages, min_size=3, max_size=20),
)


class Files:
    """Descriptors of every kind."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.kinds: dict[str, int] = {}
        self.kinds["memory"] = os.memfd_create("memory", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.kinds["memory"], MEMORY)
        fcntl.fcntl(self.kinds["memory"], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        (sandbox.shared / "short").write_bytes(b"short")
        self.kinds["short"] = os.open(sandbox.shared / "short", os.O_RDWR)
        self.kinds["event"] = os.eventfd(1)
        self.kinds["full"] = os.eventfd(0)
        os.eventfd_write(self.kinds["full"], (1 << 64) - 2)
        self.kinds["pipe"], self.kinds["other end"] = os.pipe()
        self.one, self.other = socket.socketpair()
        self.kinds["socket"] = self.one.fileno()
        self.kinds["null"] = os.open("/dev/null", os.O_RDWR)
        self.kinds["folder"] = os.open(sandbox.shared, os.O_PATH)

    def close(self) -> None:
        """Close them all."""
        self.one.close()
        self.other.close()
        for kind, fd in self.kinds.items():
            if kind != "socket":
                os.close(fd)


@contextmanager
def session(started: bool) -> Iterator[tuple[Guest, Sandbox, Files]]:
    """A daemon for one case."""
    sandbox = Sandbox()
    files = Files(sandbox)
    try:
        with served(sandbox) as guest:
            if started:
                guest.start()
                guest.init()
            yield guest, sandbox, files
    finally:
        files.close()
        sandbox.close()


def do(case: tuple[bool, Sequence[tuple]]) -> int:
    """One case; returns how many messages were sent."""
    started, drawn = case
    sent = 0
    with session(started) as (guest, sandbox, files):
        for (request, payload, files_of), flags, cut in drawn:
            sent += 1
            data = struct.pack("<III", request, flags, len(payload)) + payload
            fds = [files.kinds[kind] for kind in files_of]
            alive = _send(guest, data[:cut], fds)
            if not alive or (cut is not None and cut < len(data)):
                break
            if not timed(guest, lambda: _answers(guest)):
                break
        with suppress(OSError):
            guest.main.shutdown(socket.SHUT_WR)
        code = guest.daemon.wait(10)
        if code not in (0, BROKE_PROTOCOL):
            check_end(guest, sandbox)
        check_end(guest, sandbox, (0, BROKE_PROTOCOL))
    return sent


def _send(guest: Guest, data: bytes, fds: Sequence[int]) -> bool:
    """Send it; False if the daemon has left."""
    try:
        guest.send_raw(data, fds)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def _answers(guest: Guest) -> bool:
    """Whether the daemon still answers; False if it left. Anything else is to be found."""
    if not _send(guest, struct.pack("<III", GET_MAX_MEM_SLOTS, 9, 0), ()):
        return False
    while True:
        try:
            request, flags, payload = guest.receive()
        except (AssertionError, ConnectionResetError):
            return False
        if flags != 5:
            raise FoundError(f"a reply to {request} with flags {flags:#x}")
        if request == GET_MAX_MEM_SLOTS:
            if payload != struct.pack("<Q", 509):
                raise FoundError(f"{payload!r} memory slots")
            return True
