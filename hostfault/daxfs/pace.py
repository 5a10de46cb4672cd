"""How soon to look into the rings again, where nobody is told of requests."""

from __future__ import annotations

SOON, LATE = 1, 5  # milliseconds: after a request, and when there was none for long


class Pace:
    """At once after a request, then twice as late each time."""

    def __init__(self) -> None:
        self._next = SOON

    def hurry(self) -> None:
        """There was a request: more of them are likely."""
        self._next = SOON

    def wait(self) -> int:
        """Milliseconds to wait now."""
        now, self._next = self._next, min(2 * self._next, LATE)
        return now
