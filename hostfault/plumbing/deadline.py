"""Deadlines, and the only place where the clock is read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from hostfault.plumbing.errors import DeadlineError

T = TypeVar("T")


def now() -> float:
    """Seconds on a clock that never goes back (CLOCK_MONOTONIC)."""
    return time.monotonic()


def wall_clock() -> float:
    """Seconds since the epoch, for names and records, never for waits."""
    return time.time()


class Deadline:
    """A point in time by which something must have happened.

    ``waiting_for`` completes the sentence "waited N s for ...". Note what was seen with
    :meth:`saw`, so that giving up can say so.
    """

    def __init__(self, seconds: float, waiting_for: str) -> None:
        self.seconds = seconds
        self.waiting_for = waiting_for
        self.last_seen = "nothing"
        self._started = now()

    def elapsed(self) -> float:
        """Seconds since the wait began."""
        return now() - self._started

    def left(self) -> float:
        """Seconds left, never below zero: fit for a ``timeout`` argument."""
        return max(0.0, self.seconds - self.elapsed())

    def passed(self) -> bool:
        """Whether the time is over."""
        return self.left() == 0.0

    def saw(self, what: object) -> None:
        """Remember the last thing seen, for the message of :meth:`error`."""
        text = str(what).strip()
        if text:
            self.last_seen = text[-400:]

    def check(self) -> None:
        """Raise :class:`DeadlineError` if the time is over."""
        if self.passed():
            raise self.error()

    def error(self) -> DeadlineError:
        """The error to raise when the wait is given up."""
        return DeadlineError(self.waiting_for, self.elapsed(), self.last_seen)


def poll(deadline: Deadline, probe: Callable[[], T | None], interval: float = 0.05) -> T:
    """Call ``probe`` until it returns something other than None.

    ``interval`` is in seconds. For peers that offer no event to wait for; ``probe`` should tell
    ``deadline.saw``. Raises :class:`DeadlineError`.
    """
    while True:
        result = probe()
        if result is not None:
            return result
        deadline.check()
        time.sleep(min(interval, deadline.left()))
