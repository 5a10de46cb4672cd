"""vhost-user messages, as they should be and as they should not."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from daxfs_frontend import (
    ADD_MEM_REG,
    FEATURES,
    GET_CONFIG,
    GET_FEATURES,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_SHMEM_CONFIG,
    GET_VRING_BASE,
    GUEST,
    HALF,
    MEMORY,
    PROTOCOL_FEATURES,
    REM_MEM_REG,
    SET_BACKEND_REQ_FD,
    SET_CONFIG,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    USER,
    WINDOW,
)
from daxfs_guest import Guest

from hostfault.backing.virtiofs_dax import find_frame
from hostfault.daxfs.__main__ import main
from hostfault.daxfs.eventlog import EventLog

CONFIG = b"hostfault".ljust(36, b"\0") + struct.pack("<I", 1)


def test_features_queues_and_slots_are_told(connected: Guest) -> None:
    assert connected.number(GET_FEATURES) == FEATURES
    assert connected.number(GET_PROTOCOL_FEATURES) == PROTOCOL_FEATURES
    assert connected.number(GET_QUEUE_NUM) == 2
    assert connected.number(GET_MAX_MEM_SLOTS) == 509


def test_the_window_is_shared_memory_region_0(connected: Guest) -> None:
    reply = connected.ask(GET_SHMEM_CONFIG)
    assert struct.unpack("<II256Q", reply) == (1, 0, WINDOW, *[0] * 255)


def test_the_configuration_is_tag_and_number_of_request_queues(connected: Guest) -> None:
    for offset, length in ((0, 40), (36, 4), (0, 36), (39, 1), (38, 4), (40, 8), (0, 256)):
        wanted = struct.pack("<III", offset, length, 0)
        reply = connected.ask(GET_CONFIG, wanted + bytes(length))
        assert reply == wanted + CONFIG[offset : offset + length].ljust(length, b"\0")


def test_hanging_up_is_a_clean_end(guest: Guest) -> None:
    guest.main.close()
    assert guest.daemon.wait(10) == 0
    assert guest.events("disconnect")[0]["clean"] is True


def test_hanging_up_with_an_answer_unread_is_a_clean_end_too(connected: Guest) -> None:
    connected.send(GET_FEATURES)
    connected.main.recv(1)
    connected.main.close()
    assert connected.daemon.wait(10) == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("<II", GET_FEATURES, 1), "needs 12 bytes"),
        (struct.pack("<III", SET_FEATURES, 1, 8) + b"half", "within the payload of SET_FEATURES"),
        (struct.pack("<III", GET_FEATURES, 1, 2**32 - 1), "payload of 4294967295 bytes"),
        (struct.pack("<III", GET_FEATURES, 2, 0), "version 2"),
        (struct.pack("<III", 99, 1, 0), "request 99: unknown"),
        (struct.pack("<III", SET_CONFIG, 1, 0), "unknown request"),
        (struct.pack("<III", SET_FEATURES, 1, 0), "needs 8 bytes"),
        (struct.pack("<III", GET_CONFIG, 9, 4) + b"abcd", "needs 12 bytes"),
        (struct.pack("<6I", GET_CONFIG, 9, 12, 2**32 - 1, 2**32 - 1, 0), "of configuration"),
        (struct.pack("<5I", GET_VRING_BASE, 9, 8, 2, 0), "queue 2 of 2"),
        (os.urandom(4) * 64, "SET_VRING_NUM|payload|version|request"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_that_can_not_be_answered_ends_the_connection(
    connected: Guest, data: bytes, reason: str
) -> None:
    connected.send_raw(data)
    connected.main.shutdown(1)
    assert connected.ended() == 1
    (line,) = connected.events("disconnect")
    assert line["clean"] is False
    assert any(part in line["reason"] for part in reason.split("|"))


def test_too_many_descriptors_end_the_connection(connected: Guest) -> None:
    connected.send(GET_FEATURES, fds=[connected.fd] * 20, ack=False)
    assert connected.ended() == 1
    assert "too many file descriptors" in connected.events("disconnect")[0]["reason"]


def test_a_request_that_asks_for_an_answer_gets_an_error_and_life_goes_on(
    connected: Guest,
) -> None:
    connected.start()
    region = struct.pack("<4Q", GUEST, MEMORY, USER, 0)
    fd = connected.fd
    bad = {
        "unknown request": (SET_CONFIG, bytes(16), ()),
        "features 0x1 were not offered": (SET_FEATURES, struct.pack("<Q", 1), ()),
        "protocol features 0x2 ": (SET_PROTOCOL_FEATURES, struct.pack("<Q", 2), ()),
        "2 regions with 1": (SET_MEM_TABLE, struct.pack("<II", 2, 0) + region * 2, (fd,)),
        "0 regions with 1": (SET_MEM_TABLE, struct.pack("<II", 0, 0), (fd,)),
        "MemoryRegion needs 32": (SET_MEM_TABLE, struct.pack("<II", 1, 0) + region[:-1], (fd,)),
        "ADD_MEM_REG: 0 file": (ADD_MEM_REG, bytes(8) + region, ()),
        "ADD_MEM_REG: 2 file": (ADD_MEM_REG, bytes(8) + region, (fd, fd)),
        "ADD_MEM_REG: MemoryRegion": (ADD_MEM_REG, region, (fd,)),
        "longer than its file": (
            ADD_MEM_REG,
            struct.pack("<5Q", 0, 0, MEMORY, 0, 4096),
            (fd,),
        ),
        "of 0 bytes": (ADD_MEM_REG, bytes(40), (fd,)),
        "bytes at 0xfffffffffffff000": (
            ADD_MEM_REG,
            struct.pack("<5Q", 0, 2**64 - 4096, MEMORY, 0, 0),
            (fd,),
        ),
        "no memory region": (REM_MEM_REG, struct.pack("<5Q", 0, 1, 2, 3, 4), ()),
        "a ring of 0 entries": (SET_VRING_NUM, struct.pack("<II", 1, 0), ()),
        "a ring of 15 entries": (SET_VRING_NUM, struct.pack("<II", 1, 15), ()),
        "a ring of 2048 entries": (SET_VRING_NUM, struct.pack("<II", 1, 2048), ()),
        "queue 7 of 2": (SET_VRING_NUM, struct.pack("<II", 7, 16), ()),
        "not aligned": (SET_VRING_ADDR, struct.pack("<II4Q", 1, 0, 8, 0, 0, 0), ()),
        "queue 4294967295": (SET_VRING_ENABLE, struct.pack("<II", 2**32 - 1, 1), ()),
        "SET_VRING_KICK: 0 file": (SET_VRING_KICK, struct.pack("<Q", 1), ()),
        "SET_VRING_KICK: 2 file": (SET_VRING_KICK, struct.pack("<Q", 1), (fd, fd)),
        "SET_VRING_KICK: queue 255": (SET_VRING_KICK, struct.pack("<Q", 255), (fd,)),
        "SET_BACKEND_REQ_FD: 0 file": (SET_BACKEND_REQ_FD, b"", ()),
        "SET_BACKEND_REQ_FD: [Errno 88]": (SET_BACKEND_REQ_FD, b"", (fd,)),
    }
    before = connected.open_descriptors()
    for reason, (request, payload, fds) in bad.items():
        assert connected.number(request, payload, fds) == 1, reason
        assert reason in connected.refusals()
    assert connected.open_descriptors() == before
    connected.init()
    assert connected.getattr().links >= 2


def test_a_front_end_that_wants_stores_logged_is_served_on(connected: Guest) -> None:
    connected.start()
    connected.init()
    log_all, log_base = 1 << 26, 6
    connected.send(log_base, struct.pack("<QQ", 1 << 12, 0), ack=False)
    assert connected.number(SET_FEATURES, struct.pack("<Q", FEATURES | log_all)) == 0
    assert connected.getattr().links >= 2
    assert connected.number(SET_FEATURES, struct.pack("<Q", FEATURES)) == 0
    assert connected.getattr().links >= 2


def test_all_memory_can_come_at_once(connected: Guest) -> None:
    connected.negotiate()
    regions = b"".join(
        struct.pack("<4Q", GUEST + start, HALF, USER + start, start) for start in (0, HALF)
    )
    table = struct.pack("<II", 2, 0) + regions
    assert connected.number(SET_MEM_TABLE, table, (connected.fd, connected.fd)) == 0
    for index in range(2):
        connected.start_ring(index)
    connected.init()


def test_memory_that_is_taken_away_is_no_longer_used(guest: Guest) -> None:
    region = struct.pack("<5Q", 0, GUEST, HALF, USER, 0)
    assert guest.number(REM_MEM_REG, region) == 0
    os.eventfd_write(guest.kicks[1], 1)
    guest.wait_broken(1)
    assert "front-end address" in guest.refusals()


def test_the_number_of_regions_is_bounded(connected: Guest) -> None:
    connected.negotiate()
    region = struct.pack("<5Q", 0, 0, 4096, 0, 0)
    replies = [connected.number(ADD_MEM_REG, region, (connected.fd,)) for _ in range(510)]
    assert replies == [0] * 509 + [1]
    assert "more than 509" in connected.refusals()


def test_refusals_are_logged_up_to_a_bound() -> None:
    stream = io.BytesIO()
    log = EventLog(stream, max_refusals=3)
    for number in range(10):
        log.refused(f"reason {number}")
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["refused"] * 3 + ["refusals-no-longer-logged"]


def test_the_log_as_a_whole_is_bounded_and_tells_what_still_holds() -> None:
    stream = io.BytesIO()
    log = EventLog(stream, max_bytes=4000)
    log.event("connected")
    log.event("map", begins="kept", moffset=1)
    for number in range(1000):
        log.event("map", begins="again", moffset=2, number=number)
        log.event("unmap", ends="again", moffset=2, number=number)
        assert len(stream.getvalue()) <= 4000
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["event"] == "connected"
    assert lines[-1]["number"] == 999
    (cut,) = [at for at, line in enumerate(lines) if line["event"] == "log-cut"]
    assert (lines[cut + 1]["event"], lines[cut + 1]["moffset"]) == ("map", 1)
    assert lines[cut]["lost"] > 10
    begun = {line["number"] for line in lines[cut + 2 :] if line["event"] == "map"}
    ended = {line["number"] for line in lines[cut + 2 :] if line["event"] == "unmap"}
    assert 0 <= len(ended) - len(begun) <= 1
    numbers = [line["number"] for line in lines if "number" in line]
    assert numbers == sorted(numbers)


def test_a_mapping_that_ends_as_the_log_is_cut_is_not_told_of_again() -> None:
    for size in range(1000, 1400):  # whichever line it is that has no room
        stream = io.BytesIO()
        log = EventLog(stream, max_bytes=size)
        for number in range(20):
            log.event("map", begins=1, number=number)
            log.event("unmap", ends=1, number=number)
        lines = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
        begin = lines.index("log-cut") + 1
        assert lines[begin] in ("map", "unmap")
        assert all(one != two for one, two in itertools.pairwise(lines[begin:])), size


def test_a_log_that_can_not_be_cut_ends() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "wb", buffering=0) as stream:
        log = EventLog(stream, max_bytes=1000)
        for _ in range(1000):
            log.event("map")
        stream.close()
        events = [json.loads(line)["event"] for line in pipe.read().splitlines()]
    assert set(events[:-1]) == {"map"}
    assert events[-1] == "log-full"


def test_sixty_thousand_mappings_leave_a_log_that_tells_the_last_one() -> None:
    """By the reader that the harness uses."""
    details = {"st_ino": 7, "foffset": 0, "len": 4096, "writable": True}
    stream = io.BytesIO()
    log = EventLog(stream, max_bytes=1 << 20)
    for number in range(60_000):
        where = {**details, "moffset": 0}
        log.event("map", begins=0, **where)
        log.event("memory", begins="memory", guest=number << 12, offset=0, st_ino=7, len=4096)
        if number < 59_999:
            log.event("memory-gone", ends="memory", guest=number << 12, len=4096)
            log.event("unmap", ends=0, moffset=0, len=4096)
    text = stream.getvalue().decode()
    assert find_frame(text, 7, 0, writable=True) == 59_999
    assert len(text) <= 1 << 20


class SmallDisk(io.BytesIO):
    """A file on a disk with so many bytes free."""

    def __init__(self, free: int) -> None:
        super().__init__()
        self.free = free

    def write(self, data: Any, /) -> int:
        if not self.free:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(data[: self.free])
        self.free -= written
        return written


def test_lines_that_a_full_disk_did_not_take_are_counted_in_the_next_one() -> None:
    disk = SmallDisk(free=1000)
    log = EventLog(disk)
    log.event("first")
    disk.free = 0
    for _ in range(3):
        log.event("lost")
    disk.free = 1000
    log.event("next", size=7)
    log.event("after")
    lines = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["first", "next", "after"]
    assert (lines[1]["lost"], lines[1]["size"]) == (3, 7)
    assert "lost" not in lines[2]


def test_a_line_that_a_full_disk_cut_spoils_no_other() -> None:
    disk = SmallDisk(free=10)
    log = EventLog(disk)
    log.event("cut")
    log.event("lost")
    disk.free = 1000
    log.event("next")
    cut, line = disk.getvalue().splitlines()
    assert len(cut) == 10
    assert json.loads(line)["lost"] == 2


@pytest.fixture
def full_log(tmp_path: Path) -> None:
    """Let the daemon's log be a file that takes nothing."""
    (tmp_path / "log").symlink_to("/dev/full")


@pytest.mark.usefixtures("full_log")
def test_a_guest_that_filled_the_disk_is_still_served(request: pytest.FixtureRequest) -> None:
    guest = request.getfixturevalue("guest")
    guest.write(*guest.create(b"file"), b"data")
    guest.map(guest.lookup(b"file"))
    with pytest.raises(OSError, match="Invalid argument"):
        guest.fuse(1, 1, b"no end")
    assert guest.getattr().links >= 2


def test_a_hostile_guest_does_not_fill_the_disk(guest: Guest) -> None:
    for _ in range(1100):
        with pytest.raises(OSError, match="Invalid argument"):
            guest.fuse(1, 1, b"no end", room=0)
    assert len(guest.events("refused")) == 1000
    assert len(guest.events("refusals-no-longer-logged")) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--fd", "0", "--shared", "nowhere"], "not a directory"),
        (["--fd", "0", "--shared", ".", "--window", "4096"], "not a multiple"),
        (["--fd", "0", "--shared", ".", "--window", "0"], "not a multiple"),
        (["--fd", "0", "--shared", ".", "--tag", "x" * 37], "not 1 to 36 bytes"),
        (["--shared", "."], "required"),
    ],
)
def test_a_command_line_that_can_not_be_served_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*options, "--log", str(tmp_path / "log")])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
