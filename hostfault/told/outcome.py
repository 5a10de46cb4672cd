"""What the measurements of docs/told.md that are no plain case come to."""

from __future__ import annotations

from dataclasses import dataclass

from hostfault.case.model import VmmDeed

EFAULT = 14  # errno(3)


@dataclass(frozen=True)
class Outcome:
    """What became of one; see :class:`hostfault.told.run.ToldRun`."""

    verdict: str
    summary: str
    told: int
    cpu_share: float = 0.0  # of a core, while a crowd waited
    deeds: tuple[VmmDeed, ...] = ()
    recovery: str = ""
    guest_answers: bool | None = None
