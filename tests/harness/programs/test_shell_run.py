"""ci/shell --run: a command in a machine that may end under it; the machine only pretends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault import shell
from hostfault.case.model import Ended, Event
from hostfault.plumbing.errors import ConnectionLostError


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
    testbed = SimpleNamespace(host=host, recorder=SimpleNamespace(events=lambda: events))
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
