"""Saving a guest with a page that is gone, by a QEMU that answers as it is told to."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError
from hostfault.told import save


class PretendedQemu:
    """Gives each answer to query-migrate once; with none left it has ended with ``code``."""

    def __init__(
        self, *answers: dict[str, str], code: int | None = None, refuses: str = ""
    ) -> None:
        self.answers, self.code, self.refuses = list(answers), code, refuses

    def execute(self, command: str, _arguments: object = None) -> dict[str, str]:
        if command == "migrate":
            if self.refuses:
                raise HostfaultError(self.refuses)
            return {}
        if not self.answers:
            raise ConnectionLostError("hung up")
        return self.answers.pop(0)

    def hello(self) -> dict[str, str]:
        return {"dir": "/run/agent"}

    def ended(self, _name: str) -> int | None:
        return self.code


def saved(qemu: PretendedQemu) -> str:
    return save._save(cast("Any", SimpleNamespace(recorder=qemu, agent=qemu)))


def test_a_guest_is_saved_once_qemu_says_so() -> None:
    assert saved(PretendedQemu({"status": "active"}, {"status": "completed"})) == save.SAVED


def test_a_qemu_that_dies_of_a_missing_page_is_named_with_its_signal() -> None:
    assert "SIGBUS" in saved(PretendedQemu({"status": "active"}, code=-signal.SIGBUS))


@pytest.mark.parametrize(
    "qemu",
    [
        PretendedQemu({"status": "failed", "error-desc": "blocked"}),
        PretendedQemu(refuses="blocked"),
    ],
)
def test_a_migration_that_fails_or_is_refused_has_its_reason(qemu: PretendedQemu) -> None:
    words = saved(qemu)
    assert save.SAVED not in words
    assert "blocked" in words


def test_a_qemu_that_hangs_up_and_lives_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "PATIENCE", 0.05)
    with pytest.raises(DeadlineError, match="hung up"):
        saved(PretendedQemu())


def test_a_migration_that_does_not_end_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "PATIENCE", 0.05)
    with pytest.raises(DeadlineError, match="active"):
        saved(PretendedQemu(*[{"status": "active"}] * 100))
