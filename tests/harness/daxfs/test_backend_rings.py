"""Rings that a driver fills well, and rings that it fills with garbage."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from daxfs_frontend import (
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
from daxfs_guest import Guest

GETATTR = struct.pack("<IIQ", 0, 0, 0)
REPLY = 16 + 16 + 88  # bytes: header, fuse_attr_out
GOOD = [(GUEST + REQUEST_AT, 56, NEXT, 1), (GUEST + REPLY_AT, REPLY, WRITE, 0)]
OUTSIDE = GUEST + MEMORY

GARBAGE = {
    "a descriptor that does not exist": ([(GUEST + REQUEST_AT, 56, NEXT, RING)], "descriptor 16"),
    "a loop": ([(GUEST + REQUEST_AT, 1, NEXT, 1), (GUEST + REQUEST_AT, 1, NEXT, 0)], "loop"),
    "a request beyond memory": ([(OUTSIDE, 56, NEXT, 1), GOOD[1]], "guest address"),
    "a request across the end": ([(OUTSIDE - 8, 56, NEXT, 1), GOOD[1]], "guest address"),
    "a request below memory": ([(0, 56, NEXT, 1), GOOD[1]], "guest address"),
    "a request at the end of all addresses": ([(2**64 - 8, 56, NEXT, 1), GOOD[1]], "guest addr"),
    "a reply beyond memory": ([GOOD[0], (OUTSIDE, REPLY, WRITE, 0)], "guest address"),
    "a huge request": ([(GUEST + REQUEST_AT, 2**32 - 1, NEXT, 1), GOOD[1]], "more than"),
    "a reply before its request": (
        [(GUEST + REPLY_AT, REPLY, WRITE | NEXT, 1), (GUEST + REQUEST_AT, 56, 0, 0)],
        "readable buffer after",
    ),
    "an indirect table in parts": ([(GUEST + TABLE_AT, 32, INDIRECT | NEXT, 1)], "indirect"),
    "an indirect table to write to": ([(GUEST + TABLE_AT, 32, INDIRECT | WRITE, 0)], "indirect"),
    "an indirect table of odd length": ([(GUEST + TABLE_AT, 33, INDIRECT, 0)], "indirect"),
    "an empty indirect table": ([(GUEST + TABLE_AT, 0, INDIRECT, 0)], "indirect table"),
    "a huge indirect table": ([(GUEST + TABLE_AT, 2**32 - 16, INDIRECT, 0)], "indirect table"),
    "an indirect table beyond memory": ([(OUTSIDE, 32, INDIRECT, 0)], "guest address"),
}


def serves(guest: Guest, shared: Path) -> bool:
    """Whether the ring answers now."""
    return guest.getattr().inode == shared.stat().st_ino


def set_up_anew(guest: Guest) -> None:
    """Stop the broken ring, empty it, start it."""
    guest.stop_ring(1)
    start = ring_at(1)
    guest.memory[start : start + 0x3000] = bytes(0x3000)
    guest.start_ring(1)


def test_garbage_breaks_only_its_ring(guest: Guest, shared: Path) -> None:
    for what, (buffers, reason) in GARBAGE.items():
        before = len(guest.events("refused"))
        guest.put_request(3, 1, GETATTR)
        guest.describe(1, buffers)
        guest.offer(1)
        guest.wait_broken(1)
        refused = guest.events("refused")
        assert len(refused) == before + 1, what
        assert reason in refused[-1]["reason"], what
        set_up_anew(guest)
        assert serves(guest, shared), what


def test_a_head_beyond_the_ring_breaks_it(guest: Guest, shared: Path) -> None:
    guest.offer(1, head=0xFFFF)
    guest.wait_broken(1)
    assert "descriptor 65535 of 16" in guest.refusals()
    set_up_anew(guest)
    assert serves(guest, shared)


def test_more_requests_than_entries_break_the_ring(guest: Guest, shared: Path) -> None:
    guest.offer(1, ahead=RING + 1)
    guest.wait_broken(1)
    assert "17 requests in a ring of 16" in guest.refusals()


def test_a_broken_ring_leaves_the_other_one_alone(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    node = guest.lookup(b"file")
    guest.offer(0, head=RING)
    guest.wait_broken(0)
    assert guest.getattr(node).links == 1


def test_an_indirect_table_within_another_breaks_the_ring(guest: Guest) -> None:
    inner = struct.pack("<QIHH", GUEST + TABLE_AT, 16, INDIRECT, 0)
    guest.memory[TABLE_AT : TABLE_AT + 16] = inner
    guest.describe(1, [(GUEST + TABLE_AT, 16, INDIRECT, 0)])
    guest.offer(1)
    guest.wait_broken(1)
    assert "indirect descriptor in an indirect table" in guest.refusals()


def test_a_ring_outside_memory_breaks(guest: Guest, shared: Path) -> None:
    guest.stop_ring(1)
    guest.start_ring(1, at=MEMORY)
    guest.wait_broken(1)
    assert "front-end address" in guest.refusals()
    set_up_anew(guest)
    assert serves(guest, shared)


def test_a_kick_without_its_other_end_breaks_the_ring(connected: Guest) -> None:
    reader, writer = os.pipe()
    os.close(connected.kicks[1])
    connected.kicks[1] = reader
    connected.start()
    os.close(writer)
    connected.wait_broken(1)
    assert "kick descriptor" in connected.refusals()


def test_an_indirect_table_is_followed(guest: Guest) -> None:
    guest.put_request(3, 1, GETATTR)
    table = b"".join(struct.pack("<QIHH", *buffer) for buffer in GOOD)
    guest.memory[TABLE_AT : TABLE_AT + len(table)] = table
    guest.describe(1, [(GUEST + TABLE_AT, len(table), INDIRECT, 0)])
    before = guest.used(1)
    guest.offer(1)
    assert guest.wait_used(1, before) == REPLY


def test_buffers_may_straddle_regions_and_come_in_crumbs(guest: Guest, shared: Path) -> None:
    guest.put_request(3, 1, GETATTR)
    request = bytes(guest.memory[REQUEST_AT : REQUEST_AT + 56])
    guest.memory[HALF - 28 : HALF + 28] = request
    guest.describe(
        1,
        [
            (GUEST + HALF - 28, 10, NEXT, 1),
            (GUEST + HALF - 18, 46, NEXT, 2),
            (GUEST + REPLY_AT, 3, NEXT | WRITE, 3),
            (GUEST + REPLY_AT + 3, 0, NEXT | WRITE, 4),
            (GUEST + REPLY_AT + 3, REPLY, WRITE, 0),
        ],
    )
    before = guest.used(1)
    guest.offer(1)
    assert guest.wait_used(1, before) == REPLY
    inode = struct.unpack_from("<Q", guest.memory, REPLY_AT + 32)[0]
    assert inode == shared.stat().st_ino


def test_a_ring_goes_round_past_its_last_index(guest: Guest) -> None:
    guest.stop_ring(1)
    available, used = ring_at(1) + 0x1002, ring_at(1) + 0x2002
    guest.u16(available, 0xFFFA)
    guest.u16(used, 0xFFFA)
    guest.start_ring(1, 0xFFFA)
    for _ in range(2 * RING):
        guest.getattr()
    assert guest.used(1) == 0xFFFA + 2 * RING - 0x10000


def test_a_ring_full_of_requests_is_answered_whole(guest: Guest) -> None:
    guest.put_request(3, 1, GETATTR)
    guest.describe(1, GOOD)
    before = guest.used(1)
    available = ring_at(1) + 0x1000
    for position in range(RING):
        guest.u16(available + 4 + 2 * position, 0)
    guest.u16(available + 2, before + RING)
    os.eventfd_write(guest.kicks[1], 1)
    for done in range(RING):
        assert guest.wait_used(1, before + done) == REPLY
    guest.getattr()


def test_a_stop_and_a_start_change_nothing_for_the_guest(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    bases = [guest.stop_ring(index) for index in range(2)]
    guest.describe(1, GOOD)
    guest.offer(1)  # waits in the ring while that is stopped
    guest.put_request(3, 1, GETATTR)
    for index, base in enumerate(bases):
        guest.start_ring(index, base)
    assert guest.wait_used(1, bases[1]) == REPLY
    assert guest.write(node, handle, b"still there") == 11
    assert (shared / "file").read_bytes() == b"still there"


def test_a_stopped_ring_is_not_served(guest: Guest) -> None:
    base = guest.stop_ring(1)
    guest.put_request(3, 1, GETATTR)
    guest.describe(1, GOOD)
    guest.offer(1)
    assert guest.stop_ring(0) >= 0  # one full round of the daemon's loop
    assert guest.used(1) == base


def test_a_request_without_room_is_given_back(guest: Guest) -> None:
    guest.put_request(3, 1, GETATTR)
    for number, (buffers, written) in enumerate(
        (
            ([(GUEST + REQUEST_AT, 39, 0, 0)], 0),
            ([GOOD[0], (GUEST + REPLY_AT, 15, WRITE, 0)], 0),
            ([(GUEST + REPLY_AT, 200, WRITE, 0)], 0),
            ([GOOD[0], (GUEST + REPLY_AT, 16, WRITE, 0)], 16),
        )
    ):
        guest.describe(1, buffers)
        before = guest.used(1)
        guest.offer(1)
        assert guest.wait_used(1, before) == written
        assert len(guest.events("refused")) == number + 1
    guest.getattr()


def test_a_request_with_a_wrong_length_is_refused(guest: Guest) -> None:
    for length in (0, 39, 55, 57, 2**32 - 1):
        with pytest.raises(OSError, match="Invalid argument"):
            guest.fuse(3, 1, GETATTR, length=length)
    assert guest.refusals().count("length") == 5


def test_a_request_cut_short_is_refused(guest: Guest) -> None:
    node, handle = guest.create(b"file")
    body = struct.pack("<QQIIQII", handle, 0, 100, 0, 0, 0, 0)
    for opcode in (3 + 1, 8, 9, 12, 13, 14, 15, 16, 18, 20, 25, 28, 34, 35, 43, 44, 45, 46, 48, 49):
        with pytest.raises(OSError, match="Invalid argument"):
            guest.fuse(opcode, node, body[:3])
    with pytest.raises(OSError, match="Invalid argument"):
        guest.fuse(16, node, body + b"x" * 99)  # WRITE of 100 bytes that brings 99
    with pytest.raises(OSError, match="Invalid argument"):
        guest.fuse(49, node, struct.pack("<I", 2**32 - 1))
    assert guest.getattr(node).size == 0


def test_nothing_is_answered_before_init(connected: Guest) -> None:
    connected.start()
    with pytest.raises(OSError, match="Invalid argument"):
        connected.getattr()
    assert "before INIT" in connected.refusals()
