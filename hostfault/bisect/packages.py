"""The first packaged kernel with which a verdict differs, by binary search; no compiler needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hostfault.bisect.codes import Decision
from hostfault.plumbing.errors import UsageError

Test = Callable[[str], Decision]


@dataclass(frozen=True)
class Boundary:
    """What a search came to."""

    older: str  # the newest kernel that is as the old end is
    newer: str  # the oldest that is as the new end is; the same as `older` if the ends agree
    old: Decision
    new: Decision
    between: tuple[str, ...] = ()  # what lies between the two and could not be tested


def between(names: Sequence[str], text: str) -> list[str]:
    """The kernels of a range ``OLDEST..NEWEST``, ends included.

    ``names`` are all that there are, oldest first. Raises :class:`UsageError`.
    """
    first, dots, last = text.partition("..")
    if not dots:
        raise UsageError(f"--packages {text}: not of the form OLDEST..NEWEST")
    for name in (first, last):
        if name not in names:
            raise UsageError(
                f"--packages {text}: there is no kernel {name!r}; known are {', '.join(names)}"
            )
    here, there = names.index(first), names.index(last)
    if here >= there:
        raise UsageError(f"--packages {text}: {first} is not older than {last}")
    return list(names[here : there + 1])


def search(names: Sequence[str], test: Test) -> Boundary:
    """Find where the decision changes between the first and the last of ``names``.

    Where it changes more than once, one of the changes is found. Raises :class:`UsageError` if
    an end cannot be tested: then nothing can be said.
    """
    old, new = test(names[0]), test(names[-1])
    for name, decision in ((names[0], old), (names[-1], new)):
        if decision is Decision.UNTESTABLE:
            raise UsageError(f"{name} cannot be tested, so it can be no end of the range")
    if old is new:
        return Boundary(names[-1], names[-1], old, new)
    low, high = 0, len(names) - 1
    untestable: set[int] = set()
    while left := [at for at in range(low + 1, high) if at not in untestable]:
        middle = min(left, key=lambda at: abs(2 * at - low - high))
        decision = test(names[middle])
        if decision is Decision.UNTESTABLE:
            untestable.add(middle)
        elif decision is old:
            low = middle
        else:
            high = middle
    return Boundary(names[low], names[high], old, new, tuple(names[low + 1 : high]))
