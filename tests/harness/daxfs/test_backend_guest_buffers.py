"""Buffers of a guest's task that are its mapping of a file on the mount, or nothing at all.

A task that calls write(2) on one file with its mapping of another as the buffer has the guest's
kernel put pages of the DAX window into the ring; so do O_DIRECT, readv(2) and splice(2).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daxfs_frontend import (
    ADD_MEM_REG,
    GUEST,
    MEMORY,
    NEXT,
    RANGE,
    REM_MEM_REG,
    REPLY_AT,
    REQUEST_AT,
    WRITE,
)
from daxfs_guest import ROOT, Guest, io

WINDOW_GUEST = 0xF800_0000  # where the window lies for the guest
WINDOW_USER = 0x7E00_0000_0000
PAGE = mmap.PAGESIZE
FAULT = -14  # -EFAULT


@contextmanager
def mapped(guest: Guest, path: Path, offset: int = 0, flags: int = os.O_RDWR) -> Iterator[None]:
    """What QEMU announces while two ranges of a file are mapped."""
    region = struct.pack("<5Q", 0, WINDOW_GUEST, 2 * RANGE, WINDOW_USER, offset)
    fd = os.open(path, flags)
    try:
        assert guest.number(ADD_MEM_REG, region, (fd,)) == 0
        yield
    finally:
        os.close(fd)
        assert guest.number(REM_MEM_REG, region) == 0


@pytest.fixture
def source(shared: Path) -> Path:
    """A file whose every page is different."""
    path = shared / "source"
    path.write_bytes(b"".join(bytes([page % 251]) * PAGE for page in range(3 * RANGE // PAGE)))
    return path


def write_from(guest: Guest, node: int, handle: int, *buffers: tuple[int, int]) -> int:
    """WRITE whose data are in guest memory: (address, length) of each part; the error, or 0."""
    length = sum(size for _, size in buffers)
    head = guest.put_request(16, node, io(handle, 0, length), length=80 + length)
    chain = [(GUEST + REQUEST_AT, 40, NEXT, 1), (GUEST + REQUEST_AT + 40, head - 40, NEXT, 2)]
    chain += [
        (address, size, NEXT, position) for position, (address, size) in enumerate(buffers, 3)
    ]
    chain.append((GUEST + REPLY_AT, 24, WRITE, 0))
    return send(guest, chain)


def read_into(
    guest: Guest, node: int, handle: int, *buffers: tuple[int, int], offset: int = 0
) -> int:
    """READ into guest memory; the error, or 0."""
    head = guest.put_request(15, node, io(handle, offset, sum(size for _, size in buffers)))
    chain = [(GUEST + REQUEST_AT, head, NEXT, 1), (GUEST + REPLY_AT, 16, NEXT | WRITE, 2)]
    chain += [
        (address, size, NEXT | WRITE, position)
        for position, (address, size) in enumerate(buffers, 3)
    ]
    chain[-1] = (*chain[-1][:2], WRITE, 0)
    return send(guest, chain)


def send(guest: Guest, chain: list[tuple[int, int, int, int]]) -> int:
    """Have a request done; the error in its reply."""
    before = guest.used(1)
    guest.describe(1, chain)
    guest.offer(1)
    written = guest.wait_used(1, before)
    size, error, unique = struct.unpack_from("<IiQ", guest.memory, REPLY_AT)
    assert (size, unique) == (written, 7)
    return int(error)


def test_a_mapping_can_be_written_to_another_file(guest: Guest, shared: Path, source: Path) -> None:
    node, handle = guest.create(b"target")
    with mapped(guest, source, offset=RANGE):
        assert write_from(guest, node, handle, (WINDOW_GUEST + 5 * PAGE + 7, 3 * PAGE)) == 0
    start = RANGE + 5 * PAGE + 7
    assert (shared / "target").read_bytes() == source.read_bytes()[start : start + 3 * PAGE]


def test_a_file_can_be_read_into_a_mapping_of_another(
    guest: Guest, shared: Path, source: Path
) -> None:
    (shared / "other").write_bytes(os.urandom(3 * PAGE))
    node = guest.lookup(b"other")
    before = source.read_bytes()
    with mapped(guest, source):
        buffer = (WINDOW_GUEST + 2 * PAGE - 9, 3 * PAGE)
        assert read_into(guest, node, guest.open(node), buffer) == 0
    after, at = source.read_bytes(), 2 * PAGE - 9
    assert after[at : at + 3 * PAGE] == (shared / "other").read_bytes()
    assert after[:at] + after[at + 3 * PAGE :] == before[:at] + before[at + 3 * PAGE :]


def test_a_mapping_can_be_written_to_its_own_file(guest: Guest, source: Path) -> None:
    node = guest.lookup(b"source")
    page = source.read_bytes()[9 * PAGE : 10 * PAGE]
    with mapped(guest, source):
        assert write_from(guest, node, guest.open(node), (WINDOW_GUEST + 9 * PAGE, PAGE)) == 0
    assert source.read_bytes()[:PAGE] == page


def test_buffers_of_both_kinds_can_be_in_one_request(guest: Guest, source: Path) -> None:
    node, handle = guest.create(b"target")
    guest.memory[0x40000 : 0x40000 + 100] = b"m" * 100
    with mapped(guest, source):
        parts = ((WINDOW_GUEST + PAGE, 10), (GUEST + 0x40000, 100), (WINDOW_GUEST + 2 * PAGE, 10))
        assert write_from(guest, node, handle, *parts) == 0
        assert guest.read(node, handle) == b"\1" * 10 + b"m" * 100 + b"\2" * 10
        parts = ((GUEST + 0x40000, 60), (WINDOW_GUEST + 3 * PAGE, 60))
        assert read_into(guest, node, handle, *parts) == 0
    assert guest.memory[0x40000 : 0x40000 + 60] == b"\1" * 10 + b"m" * 50
    assert source.read_bytes()[3 * PAGE : 3 * PAGE + 60] == b"m" * 50 + b"\2" * 10


@pytest.mark.parametrize("left", [0, PAGE // 2, PAGE, PAGE + 1])
def test_pages_that_the_host_took_away_are_a_bad_address_and_stay_away(
    guest: Guest, source: Path, left: int
) -> None:
    node, handle = guest.create(b"target")
    with mapped(guest, source):
        os.truncate(source, left)
        gone = (WINDOW_GUEST + 2 * PAGE, PAGE)
        assert write_from(guest, node, handle, gone) == FAULT
        guest.write(node, handle, b"x" * PAGE)
        assert read_into(guest, node, handle, gone) == FAULT
        assert read_into(guest, node, handle, (GUEST + 0x40000, 10), gone) == FAULT
    assert source.stat().st_size == left
    assert guest.getattr(ROOT).links == 2
    assert "in the window, 0 of them" in guest.refusals()


def test_what_is_left_of_a_truncated_file_can_be_written(guest: Guest, source: Path) -> None:
    node, handle = guest.create(b"target")
    with mapped(guest, source):
        os.truncate(source, 10 * PAGE + 5)
        assert write_from(guest, node, handle, (WINDOW_GUEST + 10 * PAGE, PAGE)) == 0
    # The last page is there as a whole, and zero beyond the end of the file: as in mmap(2).
    assert guest.read(node, handle, length=PAGE) == b"\n" * 5 + bytes(PAGE - 5)


def test_reading_into_the_last_page_does_not_make_its_file_longer(
    guest: Guest, source: Path
) -> None:
    node, handle = guest.create(b"other")
    guest.write(node, handle, b"o" * PAGE)
    with mapped(guest, source):
        os.truncate(source, PAGE + 5)
        assert read_into(guest, node, handle, (WINDOW_GUEST + PAGE, PAGE)) == 0
    assert source.stat().st_size == PAGE + 5
    assert source.read_bytes()[PAGE:] == b"o" * 5


def test_a_file_that_can_not_be_mapped_here_is_a_bad_address(
    guest: Guest, source: Path, shared: Path
) -> None:
    node, handle = guest.create(b"target")
    with mapped(guest, source, flags=os.O_RDONLY):  # which mmap refuses, to write to
        assert write_from(guest, node, handle, (WINDOW_GUEST, PAGE)) == FAULT
        assert read_into(guest, node, handle, (WINDOW_GUEST, PAGE)) == 0  # of an empty file
    assert guest.getattr(node).size == 0


def test_a_buffer_outside_all_memory_is_a_bad_address(guest: Guest) -> None:
    """The guest's kernel handed on what a task mapped of a device: no reason to stop a ring."""
    node, handle = guest.create(b"target")
    outside = (GUEST + MEMORY, PAGE)
    assert write_from(guest, node, handle, outside) == FAULT
    guest.write(node, handle, b"x" * PAGE)
    assert read_into(guest, node, handle, outside) == FAULT
    assert guest.getattr(node).size == PAGE


def test_a_request_whose_very_header_is_gone_is_given_back(guest: Guest, source: Path) -> None:
    with mapped(guest, source):
        os.truncate(source, 0)
        for chain in (
            [(WINDOW_GUEST, 56, NEXT, 1), (GUEST + REPLY_AT, 120, WRITE, 0)],
            [(GUEST + REQUEST_AT, 56, NEXT, 1), (WINDOW_GUEST, 120, WRITE, 0)],
        ):
            guest.put_request(3, ROOT, struct.pack("<IIQ", 0, 0, 0))
            before = guest.used(1)
            guest.describe(1, chain)
            guest.offer(1)
            assert guest.wait_used(1, before) == 0
    assert guest.getattr(ROOT).links == 2


def test_mappings_leave_neither_descriptors_nor_memory_behind(guest: Guest, source: Path) -> None:
    def maps() -> int:
        return len(Path(f"/proc/{guest.daemon.pid}/maps").read_text().splitlines())

    descriptors, before = guest.open_descriptors(), maps()
    for _ in range(50):
        with mapped(guest, source):
            assert guest.open_descriptors() == descriptors
            assert maps() == before + 1
    assert (guest.open_descriptors(), maps()) == (descriptors, before)
