"""Whether a process was let run, with real processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hostfault.host import scheduling
from hostfault.host.scheduling import Scheduling
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.process import spawn

# Three on one core, of one session, for niceness says nothing between sessions (autogroups).
POLITE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if os.fork() and os.fork():
    os.nice(19)
while True:
    pass
"""
SLEEPS = "import signal\nwhile True: signal.pause()"


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling, "SPACING", 0.0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def started(stack: ExitStack, tmp_path: Path, program: str) -> int:
    log = tmp_path / "log"
    return stack.enter_context(spawn([sys.executable, "-c", program], log=log)).pid


def waits_for(scheduling: Scheduling, seconds: float) -> None:
    """Let a process run, or wait for a core, for so long in all."""

    def enough() -> bool | None:
        scheduling.look()
        first, last = scheduling._looks[0], scheduling._looks[-1]
        return last.ran + last.waited - first.ran - first.waited > seconds or None

    poll(Deadline(30.0, "a process to run or wait"), enough)


def test_a_process_that_others_leave_no_time_was_not_let_run(
    stack: ExitStack, tmp_path: Path
) -> None:
    pid = started(stack, tmp_path, POLITE)
    waits_for(Scheduling(pid), 0.5)  # by then the others are at it
    polite = Scheduling(pid)
    polite.look()
    waits_for(polite, 2.0)
    assert "waited" in polite.trouble()


def test_a_process_that_runs_was_let_run(stack: ExitStack, tmp_path: Path) -> None:
    alone = Scheduling(started(stack, tmp_path, "while True: pass"))
    waits_for(alone, 0.5)
    assert alone.trouble() == ""


def test_a_process_that_sleeps_was_let_run(stack: ExitStack, tmp_path: Path) -> None:
    """A kernel that waits for ever takes no time of its QEMU."""
    sleeper = Scheduling(started(stack, tmp_path, SLEEPS))
    poll(Deadline(0.3, "nothing"), lambda: sleeper.look() or True)
    assert sleeper.trouble() == ""


def test_a_process_that_was_stopped_was_not_let_run(stack: ExitStack, tmp_path: Path) -> None:
    pid = started(stack, tmp_path, SLEEPS)
    stopped = Scheduling(pid)
    os.kill(pid, signal.SIGSTOP)
    poll(Deadline(10.0, "it to stop"), lambda: stopped.trouble() or None)
    os.kill(pid, signal.SIGCONT)
    assert stopped.trouble(), "it may go on by now: what it was silent about is the same"


def test_what_was_long_ago_counts_no_more(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = started(stack, tmp_path, SLEEPS)
    stopped = Scheduling(pid)
    os.kill(pid, signal.SIGSTOP)
    poll(Deadline(10.0, "it to stop"), lambda: stopped.trouble() or None)
    os.kill(pid, signal.SIGCONT)
    monkeypatch.setattr(scheduling, "WINDOW", 0.1)
    poll(Deadline(10.0, "that to be forgotten"), lambda: not stopped.trouble() or None)


def test_of_a_process_that_is_gone_nothing_is_said(stack: ExitStack, tmp_path: Path) -> None:
    pid = started(stack, tmp_path, SLEEPS)
    gone = Scheduling(pid)
    gone.look()
    stack.close()
    assert gone.trouble() == ""
