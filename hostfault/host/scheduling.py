"""Whether a process of this machine was let run: one that was not says nothing by its silence."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.deadline import now

WINDOW = 90.0  # seconds that are looked back: longer than a silent host is waited for
STARVED = 1 / 8  # of the time in which its threads could have run
MUCH = 1.0  # seconds of waiting for a core, below which nothing is said
SPACING = 0.5  # seconds between two looks that are remembered
STOPPED = ("T", "t")  # states in proc(5)


@dataclass(frozen=True)
class _Look:
    at: float
    ran: float  # seconds on a core, all threads together
    waited: float  # seconds in which one was ready to run and did not
    stopped: bool


class Scheduling:
    """How one process has fared lately; ask :meth:`look` often."""

    def __init__(self, pid: int) -> None:
        self._threads = Path(f"/proc/{pid}/task")
        self._looks: deque[_Look] = deque()

    def look(self) -> None:
        """Remember how it fares now."""
        at = now()
        if self._looks and at - self._looks[-1].at < SPACING:
            return
        found = list(self._fares())
        ran, waited = (sum(each[index] for each in found) for index in (0, 1))
        self._looks.append(_Look(at, ran, waited, any(stopped for _, _, stopped in found)))
        while at - self._looks[0].at > WINDOW:
            self._looks.popleft()

    def trouble(self) -> str:
        """Why its silence would say nothing; "" if it was let run, as far as one can tell."""
        self.look()
        if any(look.stopped for look in self._looks):
            return "it was stopped, by SIGSTOP or a debugger"
        first, last = self._looks[0], self._looks[-1]
        ran, waited = max(0.0, last.ran - first.ran), last.waited - first.waited
        if waited > MUCH and ran < STARVED * (ran + waited):
            return (
                f"this machine has too much other work: its threads ran for {ran:.1f} s and waited "
                f"for a core for {waited:.1f} s"
            )
        return ""

    def _fares(self) -> Iterator[tuple[float, float, bool]]:
        """Of each thread: seconds that it ran and waited, and whether it is stopped now.

        A kernel without CONFIG_SCHED_INFO knows no seconds.
        """
        with suppress(OSError):
            for thread in self._threads.iterdir():
                with suppress(OSError):
                    state = (thread / "stat").read_text().rpartition(")")[2].split()[0]
                    ran, waited, _ = (thread / "schedstat").read_text().split()
                    yield int(ran) / 1e9, int(waited) / 1e9, state in STOPPED
