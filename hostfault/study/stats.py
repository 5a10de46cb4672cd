"""What the runs of a cell say together, with confidence intervals of 95 %.

All by counting, so that no library is needed: Wilson's score interval for shares, and order
statistics for medians, which ask nothing of the distribution.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hostfault.study.plan import Cell
from hostfault.study.run import StudyRun

CONFIDENCE = 0.95
Z = 1.959964  # normal quantile of (1 + CONFIDENCE) / 2


@dataclass(frozen=True)
class Proportion:
    """How often something was the case."""

    yes: int
    of: int
    low: float  # Wilson's interval
    high: float


@dataclass(frozen=True)
class Middle:
    """The median of some counts, and between which of them that of all possible runs lies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The runs of one cell."""

    cell: str
    runs: int
    outcomes: Mapping[str, int]
    exits: Proportion
    faults: Middle  # asynchronous faults until the end; run.ENOUGH and more: cut off
    most: int  # the most faults of a run
    per_frame: float  # asynchronous faults per failed frame, mean over all runs
    lost: Middle  # entries lost to others, and failures that there was no room for
    blames: Mapping[str, int]  # of the runs that ended in an exit
    culprits: Proportion  # exits with the culprit on the vCPU
    named: Proportion  # exits that named a failed frame
    seconds: float  # median, from the word to the end


def whom(result: StudyRun) -> str:
    """Who is on the vCPU at the exit, as :class:`~hostfault.study.blame.Blame` says.

    ``other`` where it is a task on the instruction that touches its bad page, but the exit names
    another task's frame; "" without an exit.
    """
    another = result.blame == "culprit" and result.named_is_blamed is False
    return "other" if another else result.blame


def wilson(yes: int, of: int) -> Proportion:
    """A share and Wilson's score interval; (0, 1) if nothing was tried."""
    if of == 0:
        return Proportion(0, 0, 0.0, 1.0)
    share = yes / of
    scale = 1 + Z * Z / of
    centre = (share + Z * Z / (2 * of)) / scale
    half = Z * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of)) / scale
    return Proportion(yes, of, max(0.0, centre - half), min(1.0, centre + half))


def middle(counts: Sequence[float]) -> Middle:
    """The median, with the interval between order statistics that covers it.

    The number of values below the true median is binomial(n, 1/2); ranks are taken from both
    ends for as long as what is cut off has a probability of at most 2.5 % a side. With fewer
    than six values the interval is all of them, and covers less than 95 %.
    """
    ordered = sorted(counts)
    cut = 0
    while cut < len(ordered) // 2 and _tail(len(ordered), cut) <= (1 - CONFIDENCE) / 2:
        cut += 1
    rank = max(0, cut - 1)
    return Middle(median(ordered), ordered[rank], ordered[-1 - rank])


def _tail(number: int, below: int) -> float:
    """Probability of at most ``below`` successes in ``number`` fair throws."""
    return sum(math.comb(number, hits) for hits in range(below + 1)) / 2.0**number


def summary(cell: Cell, results: Sequence[StudyRun]) -> Summary:
    """Sum up the runs of a cell, of which there must be at least one."""
    mine = [result for result in results if result.cell == cell.key]
    exits = [result for result in mine if result.outcome == "exit"]
    faults = [result.faults for result in mine]
    return Summary(
        cell=cell.key,
        runs=len(mine),
        outcomes=dict(Counter(result.outcome for result in mine)),
        exits=wilson(len(exits), len(mine)),
        faults=middle(faults),
        most=max(faults),
        per_frame=sum(faults) / (len(mine) * cell.bad),
        lost=middle([result.overwritten + result.dropped for result in mine]),
        blames=dict(Counter(map(whom, exits))),
        culprits=_count(exits, lambda result: whom(result) == "culprit"),
        named=_count(exits, lambda result: bool(result.named)),
        seconds=median(result.seconds for result in mine),
    )


def _count(results: Sequence[StudyRun], holds: Callable[[StudyRun], bool]) -> Proportion:
    return wilson(sum(map(holds, results)), len(results))
