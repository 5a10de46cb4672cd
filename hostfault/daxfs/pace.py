"""How soon to look into the rings again, where nobody is told of requests."""

from __future__ import annotations

SOON, LATE, IDLE = 1, 5, 20  # milliseconds: after a request, a while later, and much later
PATIENCE = 100  # looks in vain after which a guest is idle


class Pace:
    """At once after a request, then later each time: an emulated CPU is slow, and looks add up."""

    def __init__(self) -> None:
        self._next = SOON
        self._in_vain = 0  # looks since the last request

    def hurry(self) -> None:
        """There was a request: more of them are likely."""
        self._next = SOON
        self._in_vain = 0

    def wait(self) -> int:
        """Milliseconds to wait now."""
        self._in_vain += 1
        if self._in_vain > PATIENCE:
            return IDLE
        now, self._next = self._next, min(2 * self._next, LATE)
        return now
