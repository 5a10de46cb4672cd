"""What came of one night after another: the figures of ``ci/nightly --soak``. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hostfault.nightly import news
from hostfault.nightly.results import Result


@dataclass(frozen=True)
class Soak:
    """Nights, and all that they found."""

    codes: tuple[int, ...]  # the nights' exit codes
    results: tuple[Result, ...]  # of all of them, each attempt

    def and_(self, code: int, found: Sequence[Result]) -> Soak:
        """With one more night."""
        return Soak((*self.codes, code), (*self.results, *found))

    @property
    def code(self) -> int:
        """Of the whole: the worst there was. Trouble that a second look mended is none."""
        ranks = (news.WORSE, news.TROUBLE)
        return next((each for each in ranks if each in self.codes), news.NOTHING_NEW)

    def lines(self) -> list[str]:
        """For people: what there was, and the harness's trouble by reason, also the mended."""
        trouble = Counter(each.reason for each in self.results if each.outcome.is_trouble)
        worse = sum(code == news.WORSE for code in self.codes)
        lines = [
            f"{len(self.codes)} nights, {len(self.results)} results",
            f"nights in which something was worse: {worse or 'none'}",
            f"runs with trouble of the harness: {trouble.total() or 'none'}",
        ]
        return [*lines, *(f"  {times} x {reason}" for reason, times in trouble.most_common())]
