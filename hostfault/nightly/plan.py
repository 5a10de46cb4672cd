"""What a night runs, in which order, and what of it fits into the minutes that there are. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from hostfault.nightly.results import LOCAL, Key, Result, Status
from hostfault.plumbing.errors import UsageError

UNKNOWN_CASE = 60.0  # seconds: a case that was never run may have to boot its machine
WORKER = 2 << 30  # bytes of memory: an emulated host, the page cache of its saved machine, pytest
START = 15.0  # seconds that a run of pytest takes beside its tests: open the lab, close it


def kernels_of(text: str) -> dict[str, str]:
    """``7.3.4,next=tree:/src/linux@kvm/next,local`` as label and kernel.

    Raises :class:`UsageError`.
    """
    found: dict[str, str] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        label, equals, kernel = part.partition("=")
        if not equals:
            kernel = label
        if not label or not kernel or ("/" in label and equals):
            raise UsageError(f"--kernels {part}: give NAME or LABEL=KERNEL")
        if label in found:
            raise UsageError(f"--kernels: {label} is there twice; give one of them a label")
        found[label] = kernel
    if not found:
        raise UsageError("--kernels: names no kernel")
    return found


def workers(asked: int, cores: int, memory: int) -> int:
    """How many tests may run at a time: with more than cores, boots starve each other's timers."""
    return max(1, min(asked, cores, memory // WORKER))


def is_local(kernel: str) -> bool:
    """Whether a kernel's name stands for the one that this machine runs."""
    return kernel == LOCAL


def in_order(cells: Iterable[Key], left: Sequence[Key]) -> list[Key]:
    """All cells, those first that the nights before had no time for."""
    cells = list(cells)
    wanted = set(cells)
    first = [key for key in left if key in wanted]
    return first + [key for key in cells if key not in set(first)]


@dataclass(frozen=True)
class Costs:
    """Seconds that a cell takes, from the nights before."""

    by_key: Mapping[Key, float] = field(default_factory=dict)
    by_case: Mapping[str, float] = field(default_factory=dict)

    def of(self, key: Key) -> float:
        """The estimate for a cell."""
        return self.by_key.get(key, self.by_case.get(key.case, UNKNOWN_CASE))


def costs(results: Iterable[Result]) -> Costs:
    """The medians of what was measured; a test that was skipped has no cost."""
    by_key: dict[Key, list[float]] = {}
    by_case: dict[str, list[float]] = {}
    for result in results:
        if result.outcome is not Status.SKIPPED and result.seconds > 0:
            by_key.setdefault(result.key, []).append(result.seconds)
            by_case.setdefault(result.case, []).append(result.seconds)
    return Costs(
        {key: statistics.median(each) for key, each in by_key.items()},
        {case: statistics.median(each) for case, each in by_case.items()},
    )


def next_batch(
    pending: Sequence[Key], seconds: float, costs: Costs, alone: Iterable[str] = ()
) -> list[Key]:
    """The cells of one kernel that the next run of pytest gets; none if nothing fits any more.

    They are taken from the front, where a kernel's cells are neighbours, of the first kernel of
    which something fits: what is dear must not keep out what is cheap. The kernels ``alone`` get
    one cell a run.
    """
    for kernel, group in groupby(pending, key=lambda key: key.kernel):
        taken: list[Key] = []
        left = seconds - START
        for key in group:
            if costs.of(key) <= left and not (taken and kernel in alone):
                left -= costs.of(key)
                taken.append(key)
        if taken:
            return taken
    return []
