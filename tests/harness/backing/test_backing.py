"""What the harness reads out of the daemon's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.backing import BACKINGS, Python
from hostfault.backing.virtiofs_dax import DEVICE, find_frame
from hostfault.case.model import Qemu
from hostfault.plumbing.errors import MissingCapabilityError

INODE = 45
PAGE_8 = 8 * 4096
MAP = {"event": "map", "st_ino": INODE, "foffset": 0, "len": 2 << 20, "moffset": 0}
MEMORY = {"event": "memory", "guest": 0xF8000000, "len": 2 << 20, "offset": 0, "st_ino": INODE}
READ_ONLY = {**MAP, "writable": False}
WRITABLE = {**MAP, "writable": True}
UNMAP = {"event": "unmap", "moffset": 0, "len": 2 << 20}
GONE = {"event": "memory-gone", "guest": 0xF8000000, "len": 2 << 20}


def frame(*records: dict[str, Any], writable: bool = False, offset: int = PAGE_8) -> int | None:
    return find_frame("\n".join(json.dumps(each) for each in records), INODE, offset, writable)


def test_a_mapped_page_has_a_frame() -> None:
    assert frame(MEMORY, READ_ONLY) == 0xF8008


def test_a_mapping_that_qemu_did_not_acknowledge_has_none() -> None:
    assert frame(MEMORY) is None


def test_a_mapping_whose_address_is_not_told_has_none() -> None:
    assert frame(READ_ONLY) is None


def test_a_store_needs_a_writable_mapping() -> None:
    assert frame(MEMORY, READ_ONLY, writable=True) is None
    assert frame(MEMORY, READ_ONLY, GONE, UNMAP, MEMORY, WRITABLE, writable=True) == 0xF8008


def test_what_was_unmapped_has_no_frame() -> None:
    assert frame(MEMORY, READ_ONLY, GONE, UNMAP) is None


def test_an_unmapping_elsewhere_changes_nothing() -> None:
    elsewhere = {**UNMAP, "moffset": 4 << 20}
    assert frame(MEMORY, READ_ONLY, elsewhere) == 0xF8008


def test_a_page_beyond_the_mapped_range_has_no_frame() -> None:
    assert frame(MEMORY, READ_ONLY, offset=2 << 20) is None


def test_another_file_is_not_taken_for_ours() -> None:
    assert frame({**MEMORY, "st_ino": 7}, {**READ_ONLY, "st_ino": 7}) is None


@pytest.mark.parametrize("record", [{"event": "refused", "lost": 2}, {"event": "log-full"}])
def test_what_was_known_before_lines_were_lost_no_longer_counts(record: dict[str, Any]) -> None:
    assert frame(MEMORY, READ_ONLY, record) is None
    assert frame(record, MEMORY, READ_ONLY) == 0xF8008


def test_a_line_that_was_cut_is_passed_over() -> None:
    cut = '"len": 5}\n' + json.dumps(MEMORY) + "\n" + json.dumps(READ_ONLY) + '\n{"event": "un'
    assert find_frame(cut, INODE, PAGE_8, writable=False) == 0xF8008


def qemu(path: Path, version: str, device: str = DEVICE) -> Qemu:
    """A QEMU that is a small script and knows one device."""
    path.write_text(f"#!/bin/sh\necho 'name \"{device}\", bus PCI'\n")
    path.chmod(0o755)
    return Qemu(str(path), version, (str(path),))


@pytest.mark.parametrize("version", ["11.1.0", "11.2", "12.0.1"])
def test_a_qemu_with_the_device_will_do(tmp_path: Path, version: str) -> None:
    BACKINGS["virtiofs-dax"].require(qemu(tmp_path / "qemu", version), {})


@pytest.mark.parametrize("version", ["7.2.19", "10.2", "11.0.9"])
def test_a_qemu_that_is_too_old_is_a_missing_capability(tmp_path: Path, version: str) -> None:
    with pytest.raises(MissingCapabilityError, match="too old for virtiofs DAX: use --qemu image"):
        BACKINGS["virtiofs-dax"].require(qemu(tmp_path / "qemu", version), {})


def test_a_qemu_built_without_the_device_is_a_missing_capability(tmp_path: Path) -> None:
    other = qemu(tmp_path / "qemu", "11.1.3", "vhost-user-fs-pci")
    with pytest.raises(MissingCapabilityError, match="built without vhost-user-test-device-pci"):
        BACKINGS["virtiofs-dax"].require(other, {})


class Spawned:
    """An agent that notes with which command line the daemon is started."""

    argv: tuple[str, ...] = ()

    def make_directory(self, name: str) -> None:
        """There is none."""

    def mount(self, name: str, size: int) -> bool:
        return True

    def spawn(self, name: str, argv: list[str], env: object, listen: str) -> None:
        self.argv = tuple(argv)


@pytest.mark.parametrize("on_tcg", [True, False])
def test_the_daemon_polls_where_the_cpu_is_emulated_and_nowhere_else(*, on_tcg: bool) -> None:
    agent = Spawned()
    python = Python(("python3",), {}, on_tcg=on_tcg)
    BACKINGS["virtiofs-dax"].start(cast("Any", agent), "/run", python)
    assert ("--poll" in agent.argv) is on_tcg
