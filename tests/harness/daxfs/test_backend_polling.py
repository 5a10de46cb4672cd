"""A daemon that looks for requests by itself: the driver need not notify, and may."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest
from daxfs_frontend import (
    GET_FEATURES,
    GUEST,
    MEMORY,
    NEXT,
    REPLY_AT,
    REQUEST_AT,
    RING,
    WRITE,
    ring_at,
)
from daxfs_guest import ROOT, Guest

from hostfault.daxfs.pace import IDLE, LATE, PATIENCE, SOON, Pace
from hostfault.plumbing.deadline import Deadline, now, poll

GETATTR = struct.pack("<IIQ", 0, 0, 0)
REPLY = 16 + 16 + 88  # bytes: header, fuse_attr_out
CHAIN = [(GUEST + REQUEST_AT, 56, NEXT, 1), (GUEST + REPLY_AT, REPLY, WRITE, 0)]
USED = 0x2000  # bytes from a ring's beginning to its used part: flags, index
NO_NOTIFY = 1


@pytest.fixture
def options() -> list[str]:
    """What the daemon's command line ends with."""
    return ["--poll"]


def put_silently(guest: Guest, count: int = 1) -> None:
    """Make the same GETATTR available so often, and tell nobody."""
    guest.put_request(3, ROOT, GETATTR)
    guest.describe(1, CHAIN)
    available = ring_at(1) + 0x1000
    before = guest.u16(available + 2)
    for number in range(count):
        guest.u16(available + 4 + 2 * ((before + number) % RING), 0)
    guest.u16(available + 2, (before + count) & 0xFFFF)


def test_the_driver_is_told_before_its_first_request_that_it_need_not_notify(
    connected: Guest,
) -> None:
    connected.start()
    for index in range(2):
        at = ring_at(index) + USED
        poll(Deadline(10.0, "the flag"), lambda at=at: connected.u16(at) == NO_NOTIFY or None)


def test_a_request_without_a_kick_is_answered(guest: Guest) -> None:
    for _ in range(3 * RING):
        before = guest.used(1)
        put_silently(guest)
        assert guest.wait_used(1, before) == REPLY


def test_a_ring_full_of_requests_without_a_kick_is_answered_whole(guest: Guest) -> None:
    before = guest.used(1)
    put_silently(guest, RING)
    for number in range(RING):
        assert guest.wait_used(1, before + number) == REPLY


def test_the_flag_outlives_answers(guest: Guest) -> None:
    guest.getattr()
    assert guest.u16(ring_at(1) + USED) == NO_NOTIFY


def test_a_kick_is_heard_all_the_same(guest: Guest, shared: Path) -> None:
    assert guest.getattr().inode == shared.stat().st_ino
    os.eventfd_write(guest.kicks[1], 1)  # for nothing
    assert guest.getattr().inode == shared.stat().st_ino
    poll(Deadline(10.0, "the kick to be read"), lambda: _unread(guest.kicks[1]) == 0 or None)


def _unread(event: int) -> int:
    """How often an eventfd was written to since it was read."""
    for line in Path(f"/proc/self/fdinfo/{event}").read_text().splitlines():
        if line.startswith("eventfd-count:"):
            return int(line.split()[1], 16)
    raise AssertionError("no eventfd")


def test_a_stopped_ring_is_not_looked_into(guest: Guest) -> None:
    base = guest.stop_ring(1)
    put_silently(guest)
    for _ in range(5):  # rounds of the daemon's loop
        assert guest.stop_ring(0) >= 0
    assert guest.used(1) == base
    guest.start_ring(1, base)
    assert guest.wait_used(1, base) == REPLY


def test_a_broken_ring_is_refused_once(guest: Guest) -> None:
    guest.u16(ring_at(1) + 0x1004 + 2 * (guest.used(1) % RING), RING)
    guest.u16(ring_at(1) + 0x1002, guest.used(1) + 1)
    guest.wait_broken(1)
    for _ in range(5):
        assert guest.stop_ring(0) >= 0
    assert len(guest.events("refused")) == 1


def test_a_ring_outside_memory_breaks_it_and_nothing_else(guest: Guest) -> None:
    guest.stop_ring(1)
    guest.start_ring(1, at=MEMORY)
    guest.wait_broken(1)
    assert "front-end address" in guest.refusals()
    guest.stop_ring(1)
    start = ring_at(1)
    guest.memory[start : start + 0x3000] = bytes(0x3000)
    guest.start_ring(1)
    assert guest.getattr().links == 2


def test_an_idle_guest_costs_little(guest: Guest) -> None:
    guest.getattr()
    clock = (~guest.daemon.pid << 3) | 2  # clock_getcpuclockid(3) of another process
    before, began = time.clock_gettime(clock), now()
    with pytest.raises(TimeoutError):
        _silent_for(guest, 0.5)
    assert time.clock_gettime(clock) - before < 0.1 * (now() - began)


def _silent_for(guest: Guest, seconds: float) -> None:
    guest.main.settimeout(seconds)
    guest.main.recv(1)


def test_it_looks_at_once_after_a_request_and_seldom_after_long() -> None:
    pace = Pace()
    waits = [pace.wait() for _ in range(PATIENCE + 10)]
    assert waits == sorted(waits)
    assert (waits[0], waits[PATIENCE - 1], waits[-1]) == (SOON, LATE, IDLE)
    pace.hurry()
    assert pace.wait() == SOON


class TestWithoutTheOption:
    """What a host with a CPU of its own gets."""

    @pytest.fixture
    def options(self) -> list[str]:
        return []

    def test_the_driver_notifies(self, guest: Guest) -> None:
        guest.getattr()
        assert guest.u16(ring_at(1) + USED) == 0
        for _ in range(2):  # rounds of its loop, in which it looks for more
            assert guest.number(GET_FEATURES) > 0
        before = guest.used(1)
        put_silently(guest)
        with pytest.raises(TimeoutError):
            _silent_for(guest, 0.1)
        assert guest.used(1) == before
        os.eventfd_write(guest.kicks[1], 1)
        assert guest.wait_used(1, before) == REPLY
