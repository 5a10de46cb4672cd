"""A back-end that is not ours: how it is started, and where a page is found without its log."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.backing import BACK_END_CHILD, BACKINGS, Python, foreign
from hostfault.backing.foreign import find_frame
from hostfault.backing.virtiofs_dax import LOG, SHARED, SOCKET
from hostfault.case.model import PAGE_SIZE, Page
from hostfault.host.local import local_agent
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import DeadlineError, HostfaultError, LaunchError, SetupError
from hostfault.plumbing.short_directory import short_directory
from hostfault.remote.agent import Agent
from hostfault.remote.shell import Answer

# As QEMU prints it: a region that is no RAM, plain memory, and a range of the DAX window.
TREE = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000fffffff (prio 0, ram): mem
  00000000febf1000-00000000febf1fff (prio 1, i/o): virtio-pci-common
  0000004000000000-00000040001fffff (prio 0, ram): shm-0

FlatView #1
 AS "I/O", root: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan
"""
MEMORY, WINDOW, SIZE = 0x7F0000000000, 0x7E0000000000, 2 << 20


class Monitor:
    """A QEMU with guest memory and one mapped range of a window."""

    def __init__(self, tree: str = TREE) -> None:
        self._tree = tree

    def monitor(self, line: str) -> str:
        if line == "info mtree -f":
            return self._tree.replace("\n", "\r\n")
        guest = int(line.removeprefix("gpa2hva "), 16)
        for begin, size, at in ((0, 256 << 20, MEMORY), (0x4000000000, SIZE, WINDOW)):
            if begin <= guest < begin + size:
                where = at + guest - begin
                return f"Host virtual address for {guest:#x} (x) is {where:#x}\r\n"
        return f"No memory is mapped at address {guest:#x}\r\n"


class Mapped:
    """An agent that sees those mappings of a file in QEMU."""

    def __init__(self, *mappings: tuple[int, int, int]) -> None:
        self._mappings = list(mappings)

    def mappings(self, name: str, path: str) -> list[tuple[int, int, int]]:
        return self._mappings


def frame(*mappings: tuple[int, int, int], tree: str = TREE) -> int:
    page = Page("shared/data", 8 * PAGE_SIZE, "tmpfs")
    return foreign.frame(cast("Any", Mapped(*mappings)), cast("Any", Monitor(tree)), page)


def test_a_page_is_where_qemu_has_its_file_in_the_guest() -> None:
    assert frame((WINDOW, SIZE, 0)) == 0x4000008
    assert frame((WINDOW + 0x4000, SIZE - 0x4000, 0)) == 0x400000C
    assert frame((0x1000, SIZE, SIZE), (WINDOW, SIZE, 4 * PAGE_SIZE)) == 0x4000004


@pytest.mark.parametrize(
    ("mapping", "tree"),
    [
        (None, TREE),
        ((0x7D0000000000, SIZE, 0), TREE),  # for itself, not for the guest
        ((WINDOW, SIZE, SIZE), TREE),  # another part of the file
        ((WINDOW, SIZE, 0), TREE.replace("prio 0, ram): shm", "prio 0, i/o): shm")),
    ],
)
def test_a_page_that_the_guest_does_not_have_has_no_frame(
    monkeypatch: pytest.MonkeyPatch, mapping: tuple[int, int, int] | None, tree: str
) -> None:
    monkeypatch.setattr(foreign, "FRAME_PATIENCE", 0.0)
    with pytest.raises(DeadlineError):
        frame(*([mapping] if mapping else []), tree=tree)


def test_memory_that_qemu_cannot_place_is_passed_over() -> None:
    wrong = TREE.replace("0000004000000000-", "0000003000000000-")
    assert find_frame(cast("Any", Monitor(wrong)), {WINDOW}) is None


# --- the agent's part -----------------------------------------------------------------------------

HOLDER = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as stream:
    memory = mmap.mmap(stream.fileno(), 8192, offset=4096)
print("mapped", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the name of a socket is short enough."""
    with short_directory() as directory:
        yield directory / "run"


@pytest.fixture
def agent(place: Path, tmp_path: Path) -> Iterator[Agent]:
    with local_agent(place, tmp_path) as agent:
        yield agent


def test_what_a_child_has_mapped_of_a_file_is_found(agent: Agent, place: Path) -> None:
    agent.make_file("data", [1, 2, 3], PAGE_SIZE)
    agent.make_file("other", [1], PAGE_SIZE)
    argv = [sys.executable, "-c", HOLDER, str(place / "data")]
    agent.open("holder", argv, {"PATH": os.defpath})
    assert agent.hear("holder", 1.0) == b"mapped\n"
    ((address, length, offset),) = agent.mappings("holder", "data")
    assert (length, offset) == (2 * PAGE_SIZE, PAGE_SIZE)
    assert agent.peek("holder", address) == 2
    assert agent.mappings("holder", "other") == []


def test_a_socket_that_somebody_listens_on_is_known(agent: Agent, place: Path) -> None:
    path = place / "socket"
    assert not agent.listens("socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not agent.listens("socket")
        listener.listen(1)
        assert agent.listens("socket")
        assert agent.listens(str(path))


# --- the program ----------------------------------------------------------------------------------


def instead(*words: object) -> Python:
    return Python(("/no/python",), {"PATH": os.defpath}, instead=tuple(map(str, words)))


def test_it_is_started_as_virtiofsd_is_and_listens(
    agent: Agent, place: Path, foreign_virtiofsd: Path
) -> None:
    backing = BACKINGS["virtiofs-dax"]
    backing.start(agent, str(place), instead(foreign_virtiofsd))
    backing.check_alive(agent)
    assert "a foreign program listens" in backing.read_logs(agent)[LOG]
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(place / SOCKET))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_it_gets_its_own_options_a_socket_a_directory_and_a_tag(
    agent: Agent, place: Path, tmp_path: Path
) -> None:
    program = script(tmp_path / "program", 'printf "<%s>" "$@"; env; exit 3')
    with pytest.raises(LaunchError) as raised:
        BACKINGS["virtiofs-dax"].start(agent, str(place), instead(program, "--cache", "not always"))
    error = raised.value
    assert error.code == 3
    words = [f"--socket-path={place}/{SOCKET}", f"--shared-dir={place}/{SHARED}", "--tag=hostfault"]
    assert "".join(f"<{word}>" for word in ["--cache", "not always", *words]) in error.log_tail
    assert "PYTHON" not in error.log_tail


def test_one_that_cannot_be_executed_says_so(agent: Agent, place: Path, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("no program\n")
    (tmp_path / "program").chmod(0o755)
    with pytest.raises(LaunchError, match="Exec format error"):
        BACKINGS["virtiofs-dax"].start(agent, str(place), instead(tmp_path / "program"))


def test_one_that_never_listens_is_given_up(
    agent: Agent, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "PATIENCE", 0.3)
    program = script(tmp_path / "program", "echo thinking; exec sleep 1000")
    with pytest.raises(DeadlineError, match="thinking"):
        BACKINGS["virtiofs-dax"].start(agent, str(place), instead(program))
    assert agent.ended(BACK_END_CHILD) is None


class Guest:
    """A guest in which nothing can be mounted, with the last words of its kernel."""

    def __init__(self, log: str) -> None:
        self._log = log

    def run(self, command: str, deadline: Deadline) -> Answer:
        return Answer(0, self._log) if command.startswith("dmesg") else Answer(255, "mount: no\n")


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("virtio-fs: dax can't be enabled as filesystem device does not support it.", SetupError),
        ("virtio-fs: tag <hostfault> not found", LaunchError),
    ],
)
def test_one_without_a_window_is_told_from_other_trouble(
    agent: Agent, log: str, kind: type[HostfaultError]
) -> None:
    with pytest.raises(kind):
        BACKINGS["virtiofs-dax"].mount(agent, cast("Any", Guest(log)), Deadline(5.0, "the mount"))
