"""The DAX window: SETUPMAPPING and REMOVEMAPPING to SHMEM_MAP and SHMEM_UNMAP."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
from daxfs_frontend import (
    ADD_MEM_REG,
    GUEST,
    NEXT,
    RANGE,
    REM_MEM_REG,
    REPLY_AT,
    REQUEST_AT,
    SHMEM_MAP,
    SHMEM_UNMAP,
    USER,
    WINDOW,
    WRITE,
    Asked,
    FrontEnd,
)
from daxfs_guest import NO_HANDLE, Guest

WINDOW_GUEST = 0xF800_0000  # where the window lies for the guest
WINDOW_USER = 0x7E00_0000_0000


@pytest.fixture
def node(guest: Guest, shared: Path) -> int:
    """A file of two ranges."""
    (shared / "file").write_bytes(b"x" * (2 * RANGE))
    return guest.lookup(b"file")


def announce(guest: FrontEnd, fd: int) -> tuple[int, int]:
    """Do as QEMU does: tell of the mapped file as memory; returns the two replies."""
    region = struct.pack("<5Q", 0, WINDOW_GUEST, RANGE, WINDOW_USER, 0)
    added = guest.number(ADD_MEM_REG, region, (fd,))
    return added, guest.number(REM_MEM_REG, region)


def test_a_mapping_reaches_the_front_end_with_its_file(
    guest: Guest, node: int, shared: Path
) -> None:
    guest.map(node, RANGE, 4 * RANGE, writable=True)
    inode = (shared / "file").stat().st_ino
    asked = Asked(SHMEM_MAP, 0, RANGE, 4 * RANGE, RANGE, 1, inode, 2 * RANGE)
    assert guest.asked == [asked]


def test_a_mapping_is_logged_once_it_exists(guest: Guest, node: int, shared: Path) -> None:
    seen = []
    guest.before_answer = lambda asked: seen.append(guest.events("map"))
    guest.map(node, RANGE, 4 * RANGE)
    assert seen == [[]]
    (line,) = guest.events("map")
    st = (shared / "file").stat()
    expected = {
        "node": node,
        "st_dev": st.st_dev,
        "st_ino": st.st_ino,
        "size": 2 * RANGE,
        "foffset": RANGE,
        "len": RANGE,
        "moffset": 4 * RANGE,
        "writable": False,
    }
    assert {key: line[key] for key in expected} == expected


def test_the_main_socket_is_served_before_the_answer_comes(guest: Guest, node: int) -> None:
    replies = []

    def as_qemu(asked: Asked) -> None:
        fd = os.memfd_create("window")
        os.ftruncate(fd, RANGE)
        replies.append(announce(guest, fd))
        os.close(fd)

    guest.before_answer = as_qemu
    guest.map(node)
    assert replies == [(0, 0)]
    assert guest.events("memory")[-1]["guest"] == WINDOW_GUEST


def test_a_ring_is_never_looked_for_in_a_mapped_file(guest: Guest, node: int, shared: Path) -> None:
    with (shared / "file").open("rb+") as stream:
        region = struct.pack("<5Q", 0, WINDOW_GUEST, RANGE, WINDOW_USER, 0)
        assert guest.number(ADD_MEM_REG, region, (stream.fileno(),)) == 0
    (line,) = guest.events("memory")[2:]
    assert (line["reachable"], line["st_ino"]) == (False, (shared / "file").stat().st_ino)
    guest.stop_ring(1)
    guest.start_ring(1, at=WINDOW_USER - USER)
    guest.wait_broken(1)
    assert "front-end address 0x7e0000001000" in guest.refusals()


def test_an_upgrade_to_writable_unmaps_first(guest: Guest, node: int) -> None:
    guest.map(node)
    guest.map(node, writable=True)
    assert [(asked.request, asked.flags) for asked in guest.asked] == [
        (SHMEM_MAP, 0),
        (SHMEM_UNMAP, 0),
        (SHMEM_MAP, 1),
    ]


def test_a_removed_mapping_is_unmapped_whole(guest: Guest, node: int) -> None:
    guest.map(node, 0, 0)
    guest.map(node, RANGE, RANGE)
    guest.unmap(0, RANGE, 8 * RANGE)
    assert [asked.moffset for asked in guest.asked[2:]] == [0, RANGE]
    assert len(guest.events("unmap")) == 2
    guest.map(node, 0, 0)
    guest.map(node, RANGE, RANGE)
    guest.unmap(0, length=2 * RANGE)
    assert [asked.request for asked in guest.asked[6:]] == [SHMEM_UNMAP] * 2


def test_a_mapping_outside_window_or_file_is_refused(guest: Guest, node: int) -> None:
    for foffset, moffset, length in (
        (0, WINDOW, RANGE),
        (0, WINDOW - RANGE, 2 * RANGE),
        (0, 0, 0),
        (0, 0, WINDOW + 4096),
        (0, 0, (1 << 64) - 4096),
        (0, (1 << 64) - 4096, 8192),
        (0, 1, RANGE),
        (1, 0, RANGE),
        (0, 0, 100),
        ((1 << 63) - 4096, 0, RANGE),
        ((1 << 64) - 4096, 0, 8192),
    ):
        with pytest.raises(OSError, match="Invalid argument"):
            guest.map(node, foffset, moffset, length=length)
    assert guest.asked == []


def test_a_mapping_that_cuts_through_another_is_refused(guest: Guest, node: int) -> None:
    guest.map(node)
    for attempt in (
        lambda: guest.map(node, 0, 4096),
        lambda: guest.map(node, 0, 0, length=4096),
        lambda: guest.unmap(4096, length=4096),
    ):
        with pytest.raises(OSError, match="Invalid argument"):
            attempt()
    assert len(guest.asked) == 1


def test_the_number_of_mappings_is_bounded(guest: Guest, node: int) -> None:
    for page in range(256):
        guest.map(node, 0, 4096 * page, length=4096)
    with pytest.raises(OSError, match="No space left"):
        guest.map(node, 0, 4096 * 256, length=4096)
    assert len(guest.asked) == 256
    guest.map(node, 4096, 0, length=4096)  # in place of another one


def test_a_handle_must_be_the_node_s(guest: Guest, node: int) -> None:
    guest.map(node, handle=guest.open(node))
    with pytest.raises(OSError, match="Bad file descriptor"):
        guest.map(node, handle=NO_HANDLE - 1)


def test_only_regular_files_are_mapped(guest: Guest) -> None:
    with pytest.raises(IsADirectoryError):
        guest.map(guest.mkdir(b"directory"))


def test_an_unlinked_file_can_be_mapped(guest: Guest, node: int, shared: Path) -> None:
    inode = (shared / "file").stat().st_ino
    guest.unlink(b"file")
    guest.map(node)
    assert guest.asked[0].inode == inode


def test_a_short_file_is_long_enough_only_while_it_is_mapped(guest: Guest, shared: Path) -> None:
    for number, size in enumerate((0, 1, 5000, RANGE - 1)):
        short = shared / str(size)
        short.write_bytes(b"s" * size)
        os.utime(short, ns=(1, 1_000_000_001))
        guest.map(guest.lookup(short.name.encode()), moffset=number * RANGE)
        st = short.stat()
        assert guest.asked[-1].size == RANGE
        assert (st.st_size, st.st_mtime_ns) == (size, 1_000_000_001)
        assert guest.events("map")[-1]["size"] == size


def test_a_truncation_during_the_mapping_stays(guest: Guest, shared: Path) -> None:
    (shared / "short").write_bytes(b"s" * 5000)
    guest.before_answer = lambda asked: os.truncate(shared / "short", 100)
    guest.map(guest.lookup(b"short"))
    assert (shared / "short").stat().st_size == 100


def test_a_short_file_gets_its_length_back_when_mapping_fails(guest: Guest, shared: Path) -> None:
    (shared / "short").write_bytes(b"s" * 5000)
    guest.answer = 1
    with pytest.raises(OSError, match="Input/output"):
        guest.map(guest.lookup(b"short"))
    assert (shared / "short").stat().st_size == 5000
    assert guest.events("map") == []
    assert "did not map" in guest.refusals()


def test_a_short_file_gets_its_length_back_when_the_front_end_dies(
    guest: Guest, shared: Path
) -> None:
    (shared / "short").write_bytes(b"s" * 5000)
    ask_to_map(guest, guest.lookup(b"short"))
    guest.read_backend()
    assert (shared / "short").stat().st_size == RANGE
    guest.main.close()
    assert guest.daemon.wait(10) == 1
    assert (shared / "short").stat().st_size == 5000


def test_a_short_file_gets_its_length_back_at_sigterm(guest: Guest, shared: Path) -> None:
    (shared / "short").write_bytes(b"s" * 5000)
    ask_to_map(guest, guest.lookup(b"short"))
    guest.read_backend()
    guest.daemon.terminate()
    assert guest.daemon.wait(10) != 0
    assert (shared / "short").stat().st_size == 5000


def ask_to_map(guest: Guest, node: int) -> None:
    """Offer SETUPMAPPING without waiting for its reply."""
    body = struct.pack("<5Q", NO_HANDLE, 0, RANGE, 2, 0)
    length = guest.put_request(48, node, body)
    request = (GUEST + REQUEST_AT, length, NEXT, 1)
    guest.describe(1, [request, (GUEST + REPLY_AT, 16, WRITE, 0)])
    guest.offer(1)


def test_an_unmapping_that_the_front_end_refuses_is_over_anyway(guest: Guest, node: int) -> None:
    guest.map(node)
    guest.answer = 1  # as after a reset, which drops all mappings
    guest.unmap(0)
    assert guest.events("unmap")[0]["known"] is False
    guest.answer = 0
    guest.map(node)
    assert [asked.request for asked in guest.asked] == [SHMEM_MAP, SHMEM_UNMAP, SHMEM_MAP]


def test_a_ring_stopped_while_it_maps_loses_nothing(guest: Guest, node: int) -> None:
    base = guest.used(1)
    ask_to_map(guest, node)
    asked = guest.read_backend()
    assert guest.stop_ring(1) == base  # the request counts as not begun
    guest.start_ring(1, base)
    guest.answer_backend(asked)
    assert guest.wait_used(1, base) == 16
    assert [again.request for again in guest.asked] == [SHMEM_UNMAP, SHMEM_MAP]
    assert guest.stop_ring(1) == base + 1


def test_without_a_back_end_channel_there_is_no_mapping(connected: Guest, shared: Path) -> None:
    connected.start_without_channel()
    connected.init()
    (shared / "file").write_bytes(bytes(RANGE))
    with pytest.raises(OSError, match="Input/output"):
        connected.map(connected.lookup(b"file"))
    assert "no back-end channel" in connected.refusals()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (struct.pack("<IIIQ", SHMEM_UNMAP, 5, 8, 0), "instead of an answer"),
        (struct.pack("<IIIQ", SHMEM_MAP, 1, 8, 0), "instead of an answer"),
        (struct.pack("<III", SHMEM_MAP, 5, 0), "needs 8 bytes"),
        (struct.pack("<IIIQ", SHMEM_MAP, 5, 1 << 30, 0), "payload of"),
        (b"", "closed the back-end channel"),
    ],
)
def test_nonsense_on_the_back_end_channel_ends_the_connection(
    guest: Guest, node: int, reply: bytes, reason: str
) -> None:
    ask_to_map(guest, node)
    guest.read_backend()
    guest.backend.sendall(reply)
    guest.backend.shutdown(socket.SHUT_WR)
    assert guest.ended() == 1
    assert reason in guest.events("disconnect")[0]["reason"]
