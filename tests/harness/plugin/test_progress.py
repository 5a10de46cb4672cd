"""The line that shows what is waited for, on a terminal."""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hostfault.plugin import progress as module
from hostfault.plugin.progress import Progress
from hostfault.plumbing.deadline import Deadline, poll

RESULTS = 17  # the columns that pytest has already written in the current line


class Terminal:
    """A pseudo-terminal, with what was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.text = ""

    def wait_for(self, wanted: str) -> None:
        deadline = Deadline(10.0, f"{wanted!r} on the terminal")
        poll(deadline, lambda: self.read(0.1) or wanted in self.text or None)

    def read(self, patience: float) -> None:
        if select.select([self.master], [], [], patience)[0]:
            self.text += os.read(self.master, 4096).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal()
    with io.TextIOWrapper(os.fdopen(os.dup(terminal.slave), "wb")) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(module, "REDRAW_SECONDS", 0.02)
        yield terminal
    os.close(terminal.master)
    os.close(terminal.slave)


@pytest.fixture
def progress(terminal: Terminal) -> Iterator[Progress]:
    """One that knows as much of pytest's configuration as it asks for."""
    cleanups: list[Callable[[], None]] = []
    config: Any = SimpleNamespace(
        add_cleanup=cleanups.append,
        get_terminal_writer=lambda: SimpleNamespace(width_of_current_line=RESULTS, fullwidth=30),
        pluginmanager=SimpleNamespace(hasplugin=lambda name: name == "terminalreporter"),
    )
    yield Progress(config)  # made in the set-up, as pytest puts back sys.stdout after it
    for cleanup in cleanups:
        cleanup()


def test_the_wait_is_drawn_below_the_results_and_wiped_out_again(
    terminal: Terminal, progress: Progress
) -> None:
    with progress.showing():
        progress.say("booting")
        terminal.wait_for("booting (0 s)")
    terminal.wait_for("\x1b[2K\x1b[A\r\x1b[17C")
    first, last = terminal.text.split("booting (0 s)")[0], terminal.text[-20:]
    assert first.replace("\r\n", "\n") == "\n\r\x1b[2K"
    assert last.endswith("\x1b[2K\x1b[A\r\x1b[17C")


def test_a_wait_longer_than_the_line_is_cut(terminal: Terminal, progress: Progress) -> None:
    with progress.showing():
        progress.say("x" * 100)
        terminal.wait_for("x" * 29)
    assert "x" * 30 not in terminal.text


def test_a_wait_that_is_over_at_once_is_not_drawn(
    terminal: Terminal, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REDRAW_SECONDS", 60.0)
    with progress.showing():
        progress.say("booting")
    terminal.read(0.0)
    assert terminal.text == ""


def test_the_line_is_wiped_out_when_the_wait_is_interrupted(
    terminal: Terminal, progress: Progress
) -> None:
    def interrupted() -> None:
        with progress.showing():
            progress.say("booting")
            terminal.wait_for("booting (0 s)")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    terminal.wait_for("\x1b[2K\x1b[A\r\x1b[17C")
