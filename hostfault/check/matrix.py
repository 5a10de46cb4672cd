"""What was said of cases whose truth is known: right, wrong, or trouble of the harness. Pure."""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

NOTHING = "nothing"  # in place of a verdict: nothing was proven
ALLOWED_TROUBLE = 0.005  # of all cases
FINE, WRONG, TROUBLE = 0, 1, 2  # exit codes


class Standing(enum.StrEnum):
    """What a result amounts to."""

    RIGHT = "right"
    WRONG = "wrong"
    TROUBLE = "trouble"


@dataclass(frozen=True)
class CheckedCase:
    """What became of one case."""

    seed: str
    situation: str
    case: str  # in words
    truth: str  # a verdict, or NOTHING
    silence: bool  # that nothing is proven is right, too
    said: str  # a verdict; NOTHING; or "" if the case never came to be observed
    words: str  # the verdict's summary, or the error
    seconds: float  # of the whole case
    busy: int = 0  # busy processes beside it, for each core

    @property
    def standing(self) -> Standing:
        """No verdict where one was due is trouble; another one than the truth is wrong."""
        if self.said == self.truth or (self.said == NOTHING and self.silence):
            return Standing.RIGHT
        return Standing.TROUBLE if self.said in ("", NOTHING) else Standing.WRONG


def exit_code(results: Sequence[CheckedCase]) -> int:
    """Wrong verdicts first; then whether there was more trouble than may be (one case always)."""
    counts = Counter(each.standing for each in results)
    if counts[Standing.WRONG]:
        return WRONG
    return TROUBLE if counts[Standing.TROUBLE] > max(1, ALLOWED_TROUBLE * len(results)) else FINE


def report(results: Sequence[CheckedCase]) -> str:
    """Everything that a run says at its end."""
    counts = Counter(each.standing for each in results)
    parts = [_confusion(results), _situations(results), *_details(results)]
    total = ", ".join(f"{counts[each]} {each.value}" for each in Standing)
    return "\n\n".join([*filter(None, parts), f"{len(results)} cases: {total}"])


def _confusion(results: Sequence[CheckedCase]) -> str:
    """Truths in rows, what was said in columns; a case that was never observed is "error"."""
    said = Counter((each.truth, each.said or "error") for each in results)
    truths = sorted({truth for truth, _ in said})
    words = sorted({word for _, word in said}, key=lambda word: (word not in truths, word))
    rows = [["truth \\ said", *words]]
    rows += [[truth, *(str(said[truth, word] or ".") for word in words)] for truth in truths]
    return _aligned(rows)


def _situations(results: Sequence[CheckedCase]) -> str:
    counts = Counter((each.situation, each.standing) for each in results)
    rows = [["situation", "cases", *(each.value for each in Standing), "seconds"]]
    for name in sorted({each.situation for each in results}):
        took = [each.seconds for each in results if each.situation == name]
        numbers = [counts[name, standing] for standing in Standing]
        mean = f"{sum(took) / len(took):.1f}"
        rows.append([name, str(sum(numbers)), *(str(each or ".") for each in numbers), mean])
    return _aligned(rows)


def _details(results: Sequence[CheckedCase]) -> list[str]:
    """Each case that was wrong, with its seed, and the trouble by reason."""
    wrong = [each for each in results if each.standing is Standing.WRONG]
    lines = [
        f"WRONG --case {each.seed}: {each.case}\n    {each.truth} in truth, said {each.said}: "
        f"{each.words}"
        for each in wrong
    ]
    reasons: dict[str, list[str]] = {}
    for each in results:
        if each.standing is Standing.TROUBLE:
            reasons.setdefault(reason(each.words), []).append(each.seed)
    lines += [f"trouble, {len(seeds)} x {why}: {' '.join(seeds)}" for why, seeds in reasons.items()]
    return ["\n".join(lines)] if lines else []


def reason(words: str) -> str:
    """An error's first line without its numbers, so that like ones are counted together."""
    first = words.partition("\n")[0]
    return re.sub(r"0x[0-9a-f]+|\d+(?:\.\d+)?", "N", first)[:160]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
