"""Two kernels compared, cell by cell. Pure.

The verdict and the recovery are compared apart: a fix may end a spin, and make an end of what the
guest would have survived.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hostfault.case.model import RecoveryKind, VerdictKind
from hostfault.matrix.result import ERROR, CellResult, has_page, is_right

# How bad a verdict is where there is no page: who learns of it, and what is left.
WITHOUT_PAGE: Mapping[str, int] = {
    VerdictKind.OK: 0,
    VerdictKind.TASK_ERROR: 0,
    VerdictKind.VM_EXIT: 1,
    VerdictKind.SPIN: 2,
    VerdictKind.STALL: 2,
    VerdictKind.VCPU_STUCK: 3,
    VerdictKind.STALE: 3,
    VerdictKind.GUEST_DEATH: 4,
    VerdictKind.VMM_DEATH: 4,
    VerdictKind.HOST_BUG: 5,
    VerdictKind.HOST_DEATH: 5,
}
WRONG = 3  # at least, of any verdict but ``ok`` where there is a page

RECOVERIES: Mapping[str, int] = {
    "": 0,  # the access has ended: there is nothing to recover
    RecoveryKind.GOES_ON: 0,
    RecoveryKind.GOES_ON_AFTER_CONT: 1,
    RecoveryKind.LOST: 2,
}


@dataclass(frozen=True)
class Pair:
    """One cell on two kernels."""

    base: CellResult
    patched: CellResult

    @property
    def verdict(self) -> int:
        """How much worse the verdict is with the patch; negative: better."""
        return badness(self.patched) - badness(self.base)

    @property
    def recovery(self) -> int:
        """The same of the recovery; 0 where one of the two cannot be undone."""
        one, other = RECOVERIES.get(self.base.recovery), RECOVERIES.get(self.patched.recovery)
        return 0 if one is None or other is None else other - one

    @property
    def differs(self) -> bool:
        """Whether one of the two answers is another."""
        return self.base.answer != self.patched.answer

    @property
    def is_worse(self) -> bool:
        """Whether one of the two answers is worse."""
        return self.verdict > 0 or self.recovery > 0

    @property
    def fails_the_same(self) -> bool:
        """Whether both fail, in exactly the same way."""
        return not self.differs and not is_right(self.base)


def badness(result: CellResult) -> int:
    """How bad a verdict is, 0 for right."""
    rank = WITHOUT_PAGE[result.verdict]
    if has_page(result.scenario):
        return 0 if result.verdict == VerdictKind.OK else max(rank, WRONG)
    return rank


def pairs(base: Mapping[str, CellResult], patched: Mapping[str, CellResult]) -> list[Pair]:
    """The cells that both have a verdict of."""
    both = (Pair(base[name], patched[name]) for name in base if name in patched)
    return [pair for pair in both if ERROR not in (pair.base.verdict, pair.patched.verdict)]


def unknown(
    base: Mapping[str, CellResult], patched: Mapping[str, CellResult], wanted: Iterable[str]
) -> list[str]:
    """The cells of which one of the two has no verdict."""
    return [
        name
        for name in wanted
        if any(name not in each or each[name].verdict == ERROR for each in (base, patched))
    ]
