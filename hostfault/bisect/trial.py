"""Test one kernel as often as the rule wants, and find out whose fault it is if that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hostfault.bisect.children import Tester
from hostfault.bisect.codes import Decision
from hostfault.bisect.decide import Rule, RunResult, Sort, decide, in_words, sort, why_nothing
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import BrokenHarnessError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A tested kernel."""

    decision: Decision
    runs: tuple[RunResult, ...]
    words: str  # what the runs came to
    seconds: float  # for all of them


@dataclass(frozen=True)
class Bench:
    """How kernels are tested."""

    tester: Tester
    rule: Rule
    stock: str  # a packaged kernel that is known to boot and to be testable
    say: Say

    def test(self, kernel: str, folder: Path) -> Trial:
        """Test one kernel.

        Raises :class:`BrokenHarnessError` if it came to nothing and the stock kernel does, too.
        """
        begun = now()
        runs: list[RunResult] = []
        decision = None
        while decision is None:
            number = len(runs) + 1
            self.say(f"testing {kernel}, run {number}")
            runs.append(self.tester.run(kernel, folder / f"run-{number}"))
            decision = decide(self.rule, [sort(run, self.rule.counts) for run in runs])
        words = _together([in_words(run, self.rule.counts) for run in runs])
        if decision is Decision.UNTESTABLE:
            self._cross_check(words, folder)
        return Trial(decision, tuple(runs), words, now() - begun)

    def _cross_check(self, words: str, folder: Path) -> None:
        """Raise unless the stock kernel can be tested right now, on this machine."""
        self.say(f"testing {self.stock}, to see whether the harness works")
        run = self.tester.run(self.stock, folder / "cross-check")
        if sort(run) is Sort.NOTHING:
            raise BrokenHarnessError(
                f"{words}\nand the packaged kernel {self.stock} cannot be tested either: "
                f"{why_nothing(run)}\nlogs: {folder}"
            )


def _together(runs: Iterable[str]) -> str:
    """The words of all runs; what comes several times in a row is said once."""
    counted = ((words, len(list(same))) for words, same in groupby(runs))
    return "; ".join(words if n == 1 else f"{n} times {words}" for words, n in counted)
