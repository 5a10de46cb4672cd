"""What counts KVM's tracepoints here: the best of what this user is allowed.

Best is tracefs, which takes root: every frame and instruction. Next is perf_event_open: one frame
at a time. Without either nothing is counted here, and KVM's own statistics, which the
harness asks QEMU for, are all that there is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostfault.agent.perf import PerfCounts, why_not_allowed
from hostfault.agent.tracing import ANYWHERE, TRACEFS, Tracer, instance_name


class Counters(Protocol):
    """One way to count; the counts of vCPU threads only grow."""

    @property
    def how(self) -> str:
        """Its name: "tracefs", "perf", or "" for one that counts nothing."""

    def start(self) -> list[str]:
        """Begin; returns the events that are counted. Raises OSError."""

    def counted(self) -> list[str]:
        """The events that are counted now."""

    def stop(self) -> None:
        """Leave nothing behind."""

    def counts(
        self, threads: Collection[int], watched: int | None, place: tuple[int, int]
    ) -> dict[str, object]:
        """See :meth:`hostfault.agent.tracing.Tracer.counts`.

        ``place`` are the first and the last instruction that may be the access.
        """

    def count_touches(self, address: int, length: int) -> bool:
        """See :meth:`hostfault.agent.tracing.Tracer.count_touches`; False where it cannot."""

    def entries(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Counts of one event by all its keys, where there are such."""


@dataclass(frozen=True)
class NoCounts:
    """Counts nothing; ``why`` is the reason."""

    why: str
    how: str = ""

    def start(self) -> list[str]:
        """Nothing is counted."""
        return []

    counted = start

    def stop(self) -> None:
        """There is nothing to stop."""

    def counts(
        self, threads: Collection[int], watched: int | None, place: tuple[int, int]
    ) -> dict[str, object]:
        """Empty, all of them."""
        del threads, watched, place
        return {"faults": [], "async_started": [], "async_ready": [], "exits": [], "touches": None}

    def count_touches(self, address: int, length: int) -> bool:
        """It cannot."""
        del address, length
        return False

    def entries(self, event: str) -> list[tuple[dict[str, int], int]]:
        """None."""
        del event
        return []


def begin(tracefs: Path = TRACEFS) -> Counters:
    """Begin to count in the best way that is allowed.

    Raises OSError for a tracefs that is open to us, but whose kernel cannot count.
    """
    tracer = Tracer(instance_name(), tracefs)
    try:
        tracer.start()
    except PermissionError:
        why = "tracefs is root's"
    except FileNotFoundError:
        why = f"tracefs is not there: as root, mount -t tracefs tracefs {tracefs}"
    else:
        return tracer
    perf = PerfCounts(tracefs)
    try:
        perf.start()
    except OSError as error:
        return NoCounts(f"{why}; {why_not_allowed(error)}")
    return perf


__all__ = ["ANYWHERE", "Counters", "NoCounts", "begin"]
