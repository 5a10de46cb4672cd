"""What ``git bisect run`` makes of an exit code (git-bisect(1), "Bisect run"), and what we answer.

0 is "old", 1 to 124, 126 and 127 are "new", 125 is "cannot be tested", and everything from 128
on ends the bisection. pytest's own codes are of another kind: 2 to 5 would read as "new".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

OLD = 0
NEW = 1
CANNOT_BE_TESTED = 125
STOP = 128  # end the bisection; 128 + N if signal N did


class Decision(enum.StrEnum):
    """What is known about one kernel."""

    GOOD = "good"  # the tests pass
    BAD = "bad"  # they fail, with a verdict
    UNTESTABLE = "cannot be tested"


# What people call the two kinds; a word that is in neither says nothing.
PASSES = ("good", "fixed")
FAILS = ("bad", "broken")


@dataclass(frozen=True)
class BisectTerms:
    """What the two kinds of kernels are called, and which of them came first."""

    name: str  # what --term takes
    when_good: str  # what a kernel that passes is called
    when_bad: str
    good_is_old: bool  # the older end of the range passes: what broke it is looked for

    def word(self, decision: Decision) -> str:
        """The decision in these terms."""
        words = {Decision.GOOD: self.when_good, Decision.BAD: self.when_bad}
        return words.get(decision, decision.value)

    def exit_code(self, decision: Decision) -> int:
        """What to tell git."""
        if decision is Decision.UNTESTABLE:
            return CANNOT_BE_TESTED
        return OLD if (decision is Decision.GOOD) is self.good_is_old else NEW

    @property
    def old(self) -> str:
        """What git is to call the older end."""
        return self.when_good if self.good_is_old else self.when_bad

    @property
    def new(self) -> str:
        """What git is to call the newer end."""
        return self.when_bad if self.good_is_old else self.when_good


TERMS = {
    terms.name: terms
    for terms in (
        BisectTerms("good/bad", "good", "bad", good_is_old=True),
        BisectTerms("broken/fixed", "fixed", "broken", good_is_old=False),
    )
}


def terms_of(old: str, new: str) -> BisectTerms | None:
    """The terms of a bisection that calls its ends so, by what the words mean.

    None if they mean nothing to us. Raises ValueError if both ends mean the same.
    """
    old_passes, new_passes = _passes(old), _passes(new)
    if old_passes is None and new_passes is None:
        return None
    if old_passes is new_passes:
        raise ValueError(f"{old} and {new} both mean that the tests {_meaning(old)}")
    good_is_old = old_passes is True or new_passes is False
    good, bad = (old, new) if good_is_old else (new, old)
    return BisectTerms(f"{old}/{new}", good, bad, good_is_old)


def _passes(word: str) -> bool | None:
    """Whether a word means that the tests pass; None if it is unknown."""
    return word in PASSES if word in PASSES + FAILS else None


def _meaning(word: str) -> str:
    return "pass" if _passes(word) else "fail"
