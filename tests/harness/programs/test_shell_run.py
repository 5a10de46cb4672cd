"""ci/shell --run: a command in a machine that may end under it; the machine only pretends."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault import shell
from hostfault.case.model import Ended, Event
from hostfault.case.settings import Settings
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, UsageError


class PretendedChannel:
    """A shell's channel that says each word once; None is a silence."""

    def __init__(self, *words: bytes | None) -> None:
        self._words = list(words)

    def __enter__(self) -> PretendedChannel:
        return self

    def __exit__(self, *_: object) -> None: ...

    def open(self, *_: object) -> PretendedChannel:
        return self

    def settimeout(self, _seconds: float) -> None: ...

    def recv(self, _size: int) -> bytes:
        word = self._words.pop(0)
        if word is None:
            raise TimeoutError
        return word

    def recv_exit_status(self) -> int:
        return 3


def run(channel: PretendedChannel, ended: Ended | None = None, *events: Event) -> int:
    host = SimpleNamespace(ended=lambda: ended)
    recorder = SimpleNamespace(events=lambda: events)
    testbed = SimpleNamespace(host=host, recorder=recorder, deadline=Deadline)
    return shell._run(cast("Any", channel), "true", cast("Any", testbed))


def test_a_command_may_be_silent_while_its_machine_lives(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert run(PretendedChannel(None, b"late", None, b"")) == 3
    assert capfdbinary.readouterr().out == b"late"


def test_a_host_that_ends_under_a_command_is_an_error_with_its_last_words() -> None:
    with pytest.raises(ConnectionLostError, match="Kernel panic"):
        run(PretendedChannel(None), Ended(0, None, "Kernel panic - not syncing: x\n"))


def test_a_guest_that_panics_under_a_command_is_an_error() -> None:
    with pytest.raises(ConnectionLostError, match="guest"):
        run(PretendedChannel(None), None, Event("GUEST_PANICKED", 1.0, {}))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), Settings(host="emulated")),
        (("--cpu", "intel"), Settings(host="emulated", cpu="intel")),
        (
            ("--cpu", "intel", "--kvm-option", "ept=0 pml=0", "--host-kernel", "6.1"),
            Settings(
                host="emulated", cpu="intel", host_kernel="6.1", kvm_options=("ept=0", "pml=0")
            ),
        ),
    ],
)
def test_the_machine_is_the_one_that_was_asked_for(
    words: Sequence[str], wanted: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def lab(settings: Settings) -> None:
        asked.append(settings)
        raise UsageError("that is all that is wanted of it")

    monkeypatch.setattr(shell, "Lab", lab)
    with pytest.raises(UsageError, match="that is all"):
        shell.main([*words, "--run", "true"])
    assert asked == [wanted]


def test_an_intel_cpu_on_this_machines_own_kvm_is_an_error() -> None:
    with pytest.raises(UsageError, match="--cpu intel needs an emulated host"):
        shell.main(["--local", "--cpu", "intel", "--run", "true"])
