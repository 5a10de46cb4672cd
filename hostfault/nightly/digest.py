"""All that the writers of a night's files need, gathered once. Pure but for the store's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostfault.nightly import news, results
from hostfault.nightly.baseline import Baseline
from hostfault.nightly.news import Change, Item
from hostfault.nightly.results import Key, Result, Status
from hostfault.nightly.store import Night, NightStore

NIGHTS = 30  # that a history shows


@dataclass(frozen=True)
class Digest:
    """One night against its baseline and the nights before."""

    night: Night
    runs: Sequence[Result]  # every run of every test
    cells: Mapping[Key, Result]  # what counts, by cell
    items: Sequence[Item]  # what is not as expected
    changes: Sequence[Change]  # since the last night
    since: Mapping[Key, str]  # for items: the first night that was so
    baseline: str  # its name
    before: Sequence[tuple[Night, Sequence[Result]]]  # newest first, at most NIGHTS
    code: int

    def of(self, *kinds: news.Kind) -> list[Item]:
        """The items of some kinds."""
        return [item for item in self.items if item.kind in kinds]

    @property
    def kernels(self) -> list[str]:
        """The kernels of this night, as they were asked for."""
        return list(self.night.kernels)

    @property
    def cases(self) -> list[str]:
        """The cases of this night, in order."""
        return results.in_order([case for cases in self.night.cases.values() for case in cases])

    @property
    def flakes(self) -> Mapping[Key, Sequence[Result]]:
        """The cells of tonight whose runs did not agree."""
        return results.flakes(self.runs)

    def flake_rate(self, key: Key) -> tuple[int, int]:
        """In how many nights a cell's runs did not agree, of how many in which it ran."""
        ran = flaked = 0
        for found in [self.runs, *(found for _, found in self.before)]:
            of_key = [each for each in found if each.key == key]
            ran += bool(of_key)
            flaked += bool(results.flakes(of_key))
        return flaked, ran

    @property
    def trouble(self) -> dict[str, list[Result]]:
        """The runs in which nothing was learnt, by reason, the most frequent first."""
        found: dict[str, list[Result]] = {}
        for result in self.runs:
            if result.outcome.is_trouble:
                found.setdefault(result.reason or result.outcome.value, []).append(result)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))

    def count(self, *outcomes: Status) -> int:
        """How many cells ended so."""
        return sum(result.outcome in outcomes for result in self.cells.values())


def digest(store: NightStore, night: Night, found: Sequence[Result], baseline: Baseline) -> Digest:
    """Gather it."""
    before = [(each, store.results(each.name)) for each in store.before(night.name)[:NIGHTS]]
    cells = [(each.name, results.latest(of_night)) for each, of_night in before]
    items = news.compare(found, baseline)
    return Digest(
        night=night,
        runs=found,
        cells=results.latest(found),
        items=items,
        changes=sorted(news.changes(found, cells), key=lambda each: _urgency(each.key, items)),
        since={item.result.key: news.bad_since(item, night.name, cells) for item in items},
        baseline=baseline.name,
        before=before,
        code=news.exit_code(items, results_there=any(not _is_skip(each) for each in found)),
    )


def _urgency(key: Key, items: Sequence[Item]) -> int:
    """What is worse comes first, what nobody learnt anything from last."""
    kinds = [item.kind for item in items if item.result.key == key]
    order = (news.Kind.WORSE, news.Kind.LOST, news.Kind.BETTER, news.Kind.CHANGED)
    return order.index(kinds[0]) if kinds and kinds[0] in order else len(order)


def _is_skip(result: Result) -> bool:
    return result.outcome is Status.SKIPPED
