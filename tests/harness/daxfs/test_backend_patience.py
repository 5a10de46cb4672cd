"""Nobody waits long for an answer, whatever somebody else asks or fails to say."""

from __future__ import annotations

import io
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from daxfs_frontend import (
    GET_FEATURES,
    GET_SHMEM_CONFIG,
    GUEST,
    NEXT,
    REPLY_AT,
    REQUEST_AT,
    RING,
    SHMEM_MAP,
    WRITE,
    ring_at,
)
from daxfs_guest import ROOT, Guest

from hostfault.daxfs import session
from hostfault.daxfs.device import DaemonSettings, Device
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.share import FuseRequest, Share
from hostfault.plumbing.deadline import Deadline, poll

GETATTR = struct.pack("<IIQ", 0, 0, 0)
CHAIN = [(GUEST + REQUEST_AT, 56, NEXT, 1), (GUEST + REPLY_AT, 120, WRITE, 0)]
A_THOUSAND_NAMES = 1100  # at least 32 bytes each in a reply to READDIR


def fill_ring(guest: Guest) -> None:
    """Make the same GETATTR available as often as there is room, and kick once."""
    guest.put_request(3, ROOT, GETATTR)
    guest.describe(1, CHAIN)
    available = ring_at(1) + 0x1000
    before = guest.u16(available + 2)
    for position in range(RING):
        guest.u16(available + 4 + 2 * position, 0)
    guest.u16(available + 2, (before + RING) & 0xFFFF)
    os.eventfd_write(guest.kicks[1], 1)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Guest]:
    """A guest of a back-end that runs in a thread of this process."""
    ours, theirs = socket.socketpair()
    settings = DaemonSettings(tmp_path, 64 << 20, "hostfault", 1000, 100)
    device = Device(theirs, settings, EventLog(io.BytesIO()))
    thread = threading.Thread(target=device.serve)
    thread.start()
    with closing(Guest(ours, None, tmp_path / "log")) as guest:  # type: ignore[arg-type]
        guest.start()
        guest.init()
        yield guest
    thread.join(10)
    theirs.close()
    assert not thread.is_alive()


def test_the_front_end_is_heard_after_each_request(
    inside: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[bool] = []  # for each request of a ring full: had the front-end an answer by then?

    def getattr_(share: Share, request: FuseRequest) -> bytes:
        done.append(bool(select.select([inside.main], [], [], 0)[0]))
        if len(done) == 1:
            inside.send(GET_FEATURES)
        return b""

    monkeypatch.setattr(session, "OPERATIONS", {3: getattr_})
    before = inside.used(1)
    fill_ring(inside)
    for number in range(RING):
        inside.wait_used(1, (before + number) & 0xFFFF)
    assert done == [False] + [True] * (RING - 1)
    assert inside.receive()[0] == GET_FEATURES


def test_one_ring_does_not_wait_for_all_of_the_other(
    inside: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []

    def note(share: Share, request: FuseRequest) -> bytes:
        order.append(request.header.opcode)
        if len(order) == 1:  # the other ring is kicked while this one is full
            inside.memory[REPLY_AT + 4096 : REPLY_AT + 4096 + 56] = struct.pack(
                "<IIQQIIIHHIIQ", 56, 17, 9, ROOT, 0, 0, 0, 0, 0, 0, 0, 0
            )
            reply = (GUEST + REPLY_AT + 8192, 120, WRITE, 0)
            inside.describe(0, [(GUEST + REPLY_AT + 4096, 56, NEXT, 1), reply])
            inside.offer(0)
        return b""

    monkeypatch.setattr(session, "OPERATIONS", {3: note, 17: note})
    before = inside.used(1)
    fill_ring(inside)
    for number in range(RING):
        inside.wait_used(1, (before + number) & 0xFFFF)
    assert order.index(17) <= 2


def test_half_a_message_holds_up_no_ring(guest: Guest) -> None:
    message = struct.pack("<III", GET_FEATURES, 9, 0)
    for part in (message[:5], message[5:11]):
        guest.send_raw(part)
        assert guest.getattr().links == 2
    guest.send_raw(message[11:])
    assert guest.receive()[0] == GET_FEATURES


def test_half_an_answer_holds_up_no_message(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(bytes(4096))
    node = guest.lookup(b"file")
    body = struct.pack("<5Q", (1 << 64) - 1, 0, 4096, 2, 0)
    length = guest.put_request(48, node, body)
    guest.describe(1, [(GUEST + REQUEST_AT, length, NEXT, 1), (GUEST + REPLY_AT, 16, WRITE, 0)])
    before = guest.used(1)
    guest.offer(1)
    guest.read_backend()
    answer = struct.pack("<IIIQ", SHMEM_MAP, 5, 8, 0)
    guest.backend.sendall(answer[:13])
    assert guest.number(GET_FEATURES) > 0
    guest.backend.sendall(answer[13:])
    assert guest.wait_used(1, before) == 16


def test_descriptors_of_a_message_in_parts_are_closed_at_its_end(connected: Guest) -> None:
    assert connected.number(GET_FEATURES) > 0
    before = connected.open_descriptors()
    for _ in range(3):
        connected.send_raw(struct.pack("<II", GET_FEATURES, 1), [connected.fd])
        connected.send_raw(struct.pack("<I", 0))
        assert connected.receive()[0] == GET_FEATURES
    assert connected.open_descriptors() == before


def test_a_front_end_that_does_not_read_is_left(connected: Guest) -> None:
    sent = 0
    with suppress(BrokenPipeError, ConnectionResetError):
        while sent < 100_000:
            connected.send(GET_SHMEM_CONFIG)
            sent += 1
    assert sent < 100_000
    assert connected.daemon.wait(10) == 1
    assert "could not send" in connected.events("disconnect")[0]["reason"]


def test_a_full_eventfd_holds_up_nothing(guest: Guest) -> None:
    """Writing to an eventfd that is at its maximum waits, unless somebody asked it not to."""
    guest.put_request(3, ROOT, GETATTR)
    guest.describe(1, CHAIN)
    before = guest.used(1)
    with suppress(BlockingIOError):
        os.eventfd_read(guest.calls[1])  # of earlier answers
    os.eventfd_write(guest.calls[1], (1 << 64) - 2)
    guest.offer(1)
    poll(Deadline(10.0, "an answer"), lambda: guest.used(1) != before or None)
    assert guest.number(GET_FEATURES) > 0
    assert guest.wait_used(1, before) == 120


def test_a_kick_that_somebody_else_took_is_no_fault(guest: Guest) -> None:
    for _ in range(50):  # the daemon is told of it by poll, and may come too late to read it
        os.eventfd_write(guest.kicks[1], 1)
        try:
            os.eventfd_read(guest.kicks[1])
        except BlockingIOError:
            continue
    assert guest.getattr().links == 2
    assert guest.events("refused") == []


def test_only_as_many_mappings_are_removed_as_linux_asks_for(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(bytes(4096))
    guest.map(guest.lookup(b"file"), 0, 0, length=4096)
    guest.unmap(*[4096 * (number + 1) for number in range(256)], length=4096)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.unmap(*[4096 * number for number in range(257)], length=4096)
    assert "257 mappings" in guest.refusals()
    assert len(guest.asked) == 1


@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_is_read_in_parts(guest: Guest, shared: Path, *, plus: bool) -> None:
    for number in range(A_THOUSAND_NAMES):
        (shared / str(number)).touch()
    handle = guest.opendir()
    found, offset, parts = set(), 0, 0
    while names := readdir(guest, handle, offset, plus=plus):
        found |= {name for name, _, _ in names}
        offset, parts = names[-1][1], parts + 1
    assert len(found) == A_THOUSAND_NAMES + 2
    assert parts > 1


def readdir(guest: Guest, handle: int, offset: int, *, plus: bool) -> list[tuple[bytes, int, int]]:
    """READDIR with room for 256 KiB, of which no more than 32 may be used."""
    names = guest.readdir(ROOT, handle, offset, length=256 << 10, plus=plus, room=256 << 10)
    assert sum(24 + len(name) + 128 * plus for name, _, _ in names) <= 32 << 10
    return names


def test_only_so_much_is_allocated_at_once(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    with pytest.raises(OSError, match="No space left"):
        guest.fallocate(node, handle, 0, (64 << 20) + 1)
    guest.fallocate(node, handle, 0, 1 << 20)
    guest.fallocate(node, handle, 0, 1 << 40, mode=3)  # a hole is no allocation
    assert (shared / "file").stat().st_blocks == 0
