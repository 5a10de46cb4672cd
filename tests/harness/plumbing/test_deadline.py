"""Waits end, and say what they waited for and what they saw."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostfault.plumbing import deadline as module
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import DeadlineError


class Clock:
    """A clock that only a sleep moves."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(module, "time", clock)
        yield clock


def test_the_time_left_never_goes_below_zero(clock: Clock) -> None:
    deadline = Deadline(2.0, "rain")
    clock.sleep(0.5)
    assert (deadline.elapsed(), deadline.left(), deadline.passed()) == (0.5, 1.5, False)
    clock.sleep(5.0)
    assert (deadline.elapsed(), deadline.left(), deadline.passed()) == (5.5, 0.0, True)


def test_a_deadline_that_has_not_passed_raises_nothing(clock: Clock) -> None:
    Deadline(2.0, "rain").check()


def test_giving_up_says_what_was_awaited_how_long_and_what_was_seen_last(clock: Clock) -> None:
    deadline = Deadline(2.0, "the guest to boot")
    deadline.saw("SeaBIOS\n")
    deadline.saw("Booting from ROM...\n")
    clock.sleep(2.5)
    with pytest.raises(DeadlineError) as caught:
        deadline.check()
    assert str(caught.value) == (
        "waited 2.5 s for the guest to boot; last saw: Booting from ROM..."
    )


def test_seeing_nothing_does_not_hide_what_was_seen_before(clock: Clock) -> None:
    deadline = Deadline(2.0, "rain")
    deadline.saw("a cloud")
    deadline.saw("  \n")
    assert deadline.last_seen == "a cloud"


def test_only_the_end_of_a_long_text_is_kept(clock: Clock) -> None:
    deadline = Deadline(2.0, "rain")
    deadline.saw("x" * 1000 + "the end")
    assert len(deadline.last_seen) == 400
    assert deadline.last_seen.endswith("the end")


def test_poll_returns_the_first_answer_that_is_not_none(clock: Clock) -> None:
    answers = iter([None, None, 0])
    assert poll(Deadline(2.0, "a number"), lambda: next(answers), interval=0.1) == 0
    assert clock.slept == [0.1, 0.1]


def test_poll_asks_once_even_when_no_time_is_left(clock: Clock) -> None:
    assert poll(Deadline(0.0, "a number"), lambda: 1) == 1


def test_poll_gives_up_at_the_deadline_and_not_an_interval_later(clock: Clock) -> None:
    with pytest.raises(DeadlineError, match="for a number"):
        poll(Deadline(1.0, "a number"), lambda: None, interval=0.75)
    assert clock.slept == [0.75, 0.25]
