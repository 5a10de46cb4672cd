"""From what the runs of the tests gave to a decision about a kernel. Pure."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hostfault.bisect.codes import Decision
from hostfault.case.model import VerdictKind
from hostfault.plumbing.errors import UsageError


class TestOutcome(enum.StrEnum):
    """What pytest says of a test."""

    __test__ = False  # pytest: this is no test class

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class TestResult:
    """One test of one run."""

    __test__ = False  # pytest: this is no test class

    name: str
    outcome: TestOutcome
    verdict: VerdictKind | None = None  # None: it came to none
    text: str = ""  # the verdict's summary, or what went wrong instead
    kernel: str = ""  # identity of the host kernel that really ran, see BuiltKernel.identity


@dataclass(frozen=True)
class RunResult:
    """One run of the selected tests."""

    tests: tuple[TestResult, ...] = ()
    trouble: str = ""  # why there are no results at all; "" if there are


class Sort(enum.StrEnum):
    """What one run proves."""

    GOOD = "good"
    BAD = "bad"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Rule:
    """How many runs decide. Raises :class:`UsageError` for numbers that cannot decide.

    ``bad`` runs of at most ``repeat`` make a kernel bad; as soon as these can no longer be
    reached it is good. A run that proves nothing is repeated, ``retries`` times for one kernel.
    """

    repeat: int = 1
    bad: int = 1
    retries: int = 1
    counts: frozenset[VerdictKind] = frozenset()  # what may make it bad; empty: all that fail

    def __post_init__(self) -> None:
        if not 1 <= self.bad <= self.repeat:
            raise UsageError(
                f"--bad {self.bad} of --repeat {self.repeat}: "
                "it takes at least 1 bad run, and not more than there are runs"
            )
        if self.retries < 0:
            raise UsageError(f"--retries {self.retries}: cannot be less than 0")


def sort(run: RunResult, counts: Collection[VerdictKind] = ()) -> Sort:
    """What a run proves.

    A test that failed with a verdict makes it bad, whatever became of the others; only tests that
    all passed, each with a verdict, make it good. ``counts`` are the verdicts that count as bad
    (none: all); another failing verdict then proves nothing: it may be another defect.
    """
    failed = {test.verdict for test in run.tests if test.outcome is TestOutcome.FAILED} - {None}
    if failed & set(counts) if counts else failed:
        return Sort.BAD
    passed = [test.outcome is TestOutcome.PASSED and test.verdict is not None for test in run.tests]
    return Sort.GOOD if passed and all(passed) else Sort.NOTHING


def decide(rule: Rule, sorts: Sequence[Sort]) -> Decision | None:
    """The decision, or None if another run is needed."""
    count = Counter(sorts)
    if count[Sort.BAD] >= rule.bad:
        return Decision.BAD
    if count[Sort.GOOD] > rule.repeat - rule.bad:
        return Decision.GOOD
    if count[Sort.NOTHING] > rule.retries:
        return Decision.UNTESTABLE
    return None


def in_words(run: RunResult, counts: Collection[VerdictKind] = ()) -> str:
    """A run in a few words: its verdicts, and for what proves nothing the reason."""
    kinds = Counter(test.verdict.value for test in run.tests if test.verdict is not None)
    words = ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in sorted(kinds.items()))
    if sort(run, counts) is not Sort.NOTHING:
        return words
    return ": ".join(part for part in (words or "no verdict", why_nothing(run)) if part)


def why_nothing(run: RunResult) -> str:
    """The first reason why a run proves nothing, in one line."""
    if run.trouble or not run.tests:
        return first_line(run.trouble or "no test ran")
    for test in run.tests:
        if test.outcome is not TestOutcome.PASSED or test.verdict is None:
            return first_line(f"{test.name} {test.outcome}: {test.text}")
    return ""


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
