"""How long inodes and handles live."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from daxfs_guest import ROOT, Guest


def test_an_inode_has_one_node_under_all_its_names(guest: Guest, shared: Path) -> None:
    (shared / "a").touch()
    os.link(shared / "a", shared / "b")
    assert guest.lookup(b"a") == guest.lookup(b"b")


def test_a_node_lives_until_every_lookup_is_forgotten(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    before = guest.open_descriptors()
    node = guest.lookup(b"file")
    assert guest.lookup(b"file") == node
    guest.forget(node)
    assert guest.getattr(node).links == 1
    guest.forget(node)
    with pytest.raises(OSError, match="Stale"):
        guest.getattr(node)
    assert guest.open_descriptors() == before


def test_a_forgotten_number_is_not_used_again(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    node = guest.lookup(b"file")
    guest.forget(node)
    assert guest.lookup(b"file") > node


def test_many_nodes_are_forgotten_at_once(guest: Guest, shared: Path) -> None:
    nodes = []
    for number in range(50):
        (shared / str(number)).touch()
        nodes.append(guest.lookup(str(number).encode()))
    before = guest.open_descriptors()
    guest.batch_forget(*nodes)
    assert guest.open_descriptors() == before - 50


def test_forgetting_more_than_was_looked_up_does_no_harm(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    guest.forget(guest.lookup(b"file"), 1 << 63)
    guest.forget(999)
    guest.forget(ROOT, 1 << 63)
    assert guest.getattr(ROOT).inode == shared.stat().st_ino


def test_a_handle_survives_rename_and_unlink(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    guest.write(node, handle, b"first")
    guest.rename(b"file", b"renamed")
    guest.write(node, handle, b"second")
    assert (shared / "renamed").read_bytes() == b"second"
    guest.unlink(b"renamed")
    guest.write(node, handle, b"third!")
    assert guest.read(node, handle) == b"third!"
    assert guest.getattr(node).links == 0
    assert guest.truncate(node, 5).size == 5
    assert guest.read(node, guest.open(node)) == b"third"


def test_a_handle_outlives_its_node(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    guest.forget(node)
    assert guest.write(node, handle, b"still") == 5
    guest.release(node, handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        guest.write(node, handle, b"gone")


def test_a_handle_works_only_for_its_own_node_and_kind(guest: Guest) -> None:
    node, handle = guest.create(b"file")
    other, _ = guest.create(b"other")
    directory = guest.opendir()
    for attempt in (
        lambda: guest.read(other, handle),
        lambda: guest.read(ROOT, directory),
        lambda: guest.readdir(node, handle),
        lambda: guest.releasedir(node, handle),
        lambda: guest.read(node, 1 << 40),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            attempt()


def test_descriptors_are_bounded(guest: Guest, shared: Path) -> None:
    node, _ = guest.create(b"file")
    before = guest.open_descriptors()
    for _ in range(4095):
        guest.open(node)
    with pytest.raises(OSError, match="Too many open files in system"):
        guest.open(node)
    assert guest.open_descriptors() <= before + 4096
    assert guest.getattr(node).size == 0
    guest.fuse(1, ROOT, b"file\0")


def test_what_fails_half_way_leaves_no_descriptor(guest: Guest, shared: Path) -> None:
    (shared / "link").symlink_to("x")
    before = guest.open_descriptors()
    for _ in range(3):
        with pytest.raises(OSError, match="not supported"):
            guest.create(b"link")
        with pytest.raises(FileNotFoundError):
            guest.lookup(b"nothing")
    assert guest.open_descriptors() == before


@pytest.mark.parametrize("again", ["init", "destroy"])
def test_a_new_session_starts_from_nothing(guest: Guest, shared: Path, again: str) -> None:
    before = guest.open_descriptors()
    node, _ = guest.create(b"file")
    guest.map(node)
    if again == "destroy":
        guest.destroy()
        with pytest.raises(OSError, match="Invalid argument"):
            guest.getattr()
    guest.init()
    assert guest.open_descriptors() == before
    assert guest.asked[-1].request == 10
    with pytest.raises(OSError, match="Stale"):
        guest.getattr(node)
    assert guest.lookup(b"file") > node


def test_an_unanswerable_lookup_is_still_bounded(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    with pytest.raises(OSError, match="Input/output"):
        guest.fuse(1, ROOT, b"file\0", room=64)
    assert "no room" in guest.refusals()


def test_interrupts_and_forgets_have_no_reply(guest: Guest) -> None:
    guest.tell(36, 0, struct.pack("<Q", 7))
    assert guest.getattr().links >= 2


def test_every_line_of_the_log_has_a_time_and_an_event(guest: Guest) -> None:
    guest.create(b"file")
    lines = [json.loads(line) for line in guest.log.read_text().splitlines()]
    assert [line["event"] for line in lines[:3]] == ["listening", "connected", "features"]
    times = [line["t"] for line in lines]
    assert times == sorted(times)
