"""Whether a guest answers, as a shell at the other end of a socket."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from threading import Timer
from typing import Any, cast

import pytest

from hostfault.plumbing.deadline import Deadline
from hostfault.run import liveness
from hostfault.run.liveness import Liveness


class RealShell:
    """Runs commands in a shell of this machine."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []

    def open(self, command: str, _deadline: Deadline) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.children.append(subprocess.Popen(["sh", "-c", command], stdin=theirs, stdout=theirs))
        theirs.close()
        self.sockets.append(ours)
        return ours

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def guest() -> Iterator[RealShell]:
    shell = RealShell()
    yield shell
    shell.end()
    for each in shell.sockets:
        each.close()


def alive(guest: RealShell) -> Liveness:
    return Liveness(cast("Any", guest))


def test_a_guest_that_lives_answers_as_often_as_it_is_asked(
    guest: RealShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = alive(guest)
    asked.ask()
    assert asked.answers()
    monkeypatch.setattr(liveness, "ALIVE_FOR", 0.0)
    assert asked.answers()
    assert len(guest.children) == 1


def test_an_answer_to_an_old_question_is_not_enough(
    guest: RealShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = alive(guest)
    asked.ask()
    assert asked.answers()
    guest.end()
    monkeypatch.setattr(liveness, "ALIVE_FOR", 0.0)
    assert not asked.answers()


def test_a_guest_on_a_slow_host_has_longer_to_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "PATIENCE", 0.02)
    ours, theirs = socket.socketpair()
    late = Timer(0.3, lambda: theirs.sendall(b"hostfault-question-1\n"))
    with ours, theirs:
        slow = type("Slow", (), {"open": lambda *_: ours})()
        hasty, patient = Liveness(slow), Liveness(slow, slowness=500.0)
        for each in (hasty, patient):
            each.ask()
        late.start()
        assert not hasty.answers()
        assert patient.answers()
        late.join()


def test_a_guest_that_is_silent_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PATIENCE", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        silent = type("Silent", (), {"open": lambda *_: ours})()
        assert not Liveness(silent).answers()
