"""What is done to the memory of another process: here a Python in place of QEMU."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostfault.agent.foreign_call import call_in
from hostfault.agent.server import AgentServer
from hostfault.agent.userfault import (
    UFFD_FEATURE_POISON,
    PageServer,
    Userfault,
    forget_pages,
    is_lacking,
)
from hostfault.plumbing.deadline import Deadline, poll

PAGE = 4096
NR_GETPID, NR_CLOSE = 39, 3
# Maps two pages, is in a system call meanwhile, then loads a byte of the second one.
CHILD = """
import ctypes, mmap, select, sys
memory = mmap.mmap(-1, 8192)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
print(select.select([sys.stdin], [], [], 60)[0] != [], flush=True)
sys.stdin.readline()
print(memory[4096], flush=True)
"""


@dataclass(frozen=True)
class Child:
    process: subprocess.Popen[str]
    address: int

    def load(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture
def child() -> Iterator[Child]:
    line = [sys.executable, "-c", CHILD]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield Child(process, int(process.stdout.readline()))
        process.kill()


@pytest.fixture
def userfault(child: Child) -> Userfault:
    try:
        return Userfault(child.process.pid, child.address + PAGE, PAGE)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL):
            pytest.skip(f"no userfaultfd of another process here: {error}")
        raise


@pytest.fixture
def serving(userfault: Userfault) -> Iterator[list[PageServer]]:
    servers: list[PageServer] = []
    yield servers
    for each in servers:
        each.close()
    if not servers:  # else it is theirs
        userfault.close()


def test_another_process_makes_a_call_and_goes_on_in_its_own(child: Child) -> None:
    try:
        assert call_in(child.process.pid, NR_GETPID) == child.process.pid
    except PermissionError as error:
        pytest.skip(f"no ptrace here: {error}")
    with pytest.raises(OSError, match="Bad file descriptor"):
        call_in(child.process.pid, NR_CLOSE, 12345)
    child.load()
    assert child.line() == "True", "its select(2) was begun again, and saw what came"
    assert child.line() == "0"


def test_a_process_that_is_not_there_makes_no_call() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    with pytest.raises(FileNotFoundError):
        call_in(gone.pid, NR_GETPID)


def test_a_server_that_answers_brings_the_page(
    child: Child, userfault: Userfault, serving: list[PageServer]
) -> None:
    serving.append(PageServer(userfault, "answers"))
    child.load()
    assert (child.line(), child.line()) == ("True", "0")
    assert serving[0].unanswered() == 0


def test_a_server_that_hangs_leaves_the_fault_unanswered_until_it_goes_on(
    child: Child, userfault: Userfault, serving: list[PageServer]
) -> None:
    serving.append(PageServer(userfault, "hangs"))
    assert serving[0].unanswered() == 0
    child.load()
    assert child.line() == "True"
    poll(Deadline(10.0, "the fault to be told"), lambda: serving[0].unanswered() or None)
    assert serving[0].unanswered() == 1
    serving[0].go_on()
    assert child.line() == "0"


def test_the_page_of_a_server_that_ends_is_an_ordinary_one(
    child: Child, userfault: Userfault, serving: list[PageServer]
) -> None:
    serving.append(PageServer(userfault, "ends"))
    child.load()
    assert (child.line(), child.line()) == ("True", "0")
    assert serving[0].unanswered() is None


def test_a_poisoned_page_cannot_be_read_until_it_is_forgotten(child: Child) -> None:
    place = child.address + PAGE
    try:
        userfault = Userfault(child.process.pid, place, PAGE, UFFD_FEATURE_POISON)
    except OSError as error:
        pytest.skip(f"no UFFDIO_POISON here: {error}")
    userfault.poison()
    userfault.close()
    with Path(f"/proc/{child.process.pid}/mem").open("rb", buffering=0) as memory:
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(memory.fileno(), 1, place)
        forget_pages(child.process.pid, place, PAGE)
        assert os.pread(memory.fileno(), 1, place) == b"\0"
    child.load()
    assert (child.line(), child.line()) == ("True", "0")


def test_what_a_kernel_does_not_know_is_no_trouble() -> None:
    assert is_lacking(OSError(errno.EINVAL, ""))
    assert not is_lacking(OSError(errno.EPERM, ""))


def test_nothing_is_done_to_programs_of_a_machine_that_is_not_ours(tmp_path: Path) -> None:
    agent = AgentServer(tmp_path / "run")
    try:
        agent.spawn("sleeper", ["sleep", "1000"], {"PATH": os.defpath})
        for ask in (
            lambda: agent.poison_mapping("sleeper", 0, PAGE),
            lambda: agent.forget_mapping("sleeper", 0, PAGE),
            lambda: agent.serve_mapping("sleeper", 0, PAGE, "answers"),
            lambda: agent.limit("sleeper", "memory"),
        ):
            with pytest.raises(PermissionError, match="not to be hurt"):
                ask()
    finally:
        agent.close()
