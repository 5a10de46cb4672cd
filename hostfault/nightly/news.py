"""What is news in a night, and whether it is bad: the exit code. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hostfault.nightly import results
from hostfault.nightly.baseline import Baseline, Expected
from hostfault.nightly.results import Key, Result, Status

NOTHING_NEW, WORSE, TROUBLE = 0, 1, 3  # exit codes; 2 is for wrong options


class Kind(enum.StrEnum):
    """What sort of news."""

    WORSE = "worse"
    BETTER = "better"
    CHANGED = "changed"  # as good as before, but not the same
    TROUBLE = "trouble"  # nothing was learnt
    LOST = "lost"  # was run before, and is skipped now


@dataclass(frozen=True)
class Item:
    """One cell that is not as expected."""

    kind: Kind
    result: Result
    expected: Expected | None  # None: nothing was known of it

    @property
    def before(self) -> str:
        """What it was, in a word."""
        return self.expected.verdict if self.expected else "not known"


def compare(found: Iterable[Result], baseline: Baseline) -> list[Item]:
    """The cells of a night that are not as expected, in the order of running."""
    items = []
    for result in results.latest(found).values():
        expected = baseline.expected(result)
        kind = judge(result, expected)
        if kind is not None:
            items.append(Item(kind, result, expected))
    return items


def judge(result: Result, expected: Expected | None) -> Kind | None:
    """What a result is against what was expected; None: no news."""
    if result.outcome.is_trouble:
        return Kind.TROUBLE
    if result.outcome is Status.SKIPPED:
        return Kind.LOST if expected is not None else None
    rank = results.rank(result)
    if expected is None:
        return Kind.WORSE if result.outcome is Status.FAILED else None
    same = result.word == expected.verdict
    if same and (not expected.exact or rank == expected.rank):
        return None
    if rank != expected.rank:
        return Kind.WORSE if rank > expected.rank else Kind.BETTER
    return Kind.WORSE if rank == results.rank_of("spin") else Kind.CHANGED


def exit_code(items: Sequence[Item], results_there: bool) -> int:
    """0 nothing new, 1 something is worse, 3 trouble of the harness alone."""
    kinds = {item.kind for item in items}
    if Kind.WORSE in kinds:
        return WORSE
    if kinds & {Kind.TROUBLE, Kind.LOST} or not results_there:
        return TROUBLE
    return NOTHING_NEW


@dataclass(frozen=True)
class Change:
    """A cell that says another word than in the night before that has it."""

    key: Key
    before: str
    night: str  # that one
    now: Result


def changes(
    found: Iterable[Result], nights: Sequence[tuple[str, Mapping[Key, Result]]]
) -> list[Change]:
    """What changed since the last night; ``nights`` with their cells, newest first."""
    changed = []
    for key, result in results.latest(found).items():
        for night, cells in nights:
            before = cells.get(key)
            if before is not None:
                if before.word != result.word:
                    changed.append(Change(key, before.word, night, result))
                break
    return changed


def bad_since(item: Item, tonight: str, nights: Sequence[tuple[str, Mapping[Key, Result]]]) -> str:
    """The first night of those in a row, up to tonight, in which a cell was as it is now."""
    since = tonight
    for night, cells in nights:
        before = cells.get(item.result.key)
        if before is None:
            continue  # there was no time for it
        if before.word != item.result.word:
            break
        since = night
    return since
