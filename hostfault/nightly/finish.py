"""The end of a night: its files for people and programs, then everything packed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from hostfault.nightly import html, junit, kcidb, ktap, summary
from hostfault.nightly.baseline import Baseline
from hostfault.nightly.digest import Digest, digest
from hostfault.nightly.news import Kind
from hostfault.nightly.results import Result, Status
from hostfault.nightly.store import Evidence, Night, NightStore, replace_text
from hostfault.plumbing.deadline import wall_clock

WRITERS: Mapping[str, Callable[[Digest, Evidence], str]] = {
    "summary.md": lambda of, _: summary.text(of),
    "results.ktap": lambda of, _: ktap.text(of),
    "junit.xml": lambda of, _: junit.text(of),
    "kcidb.json": lambda of, _: kcidb.text(of),
    "report.html": html.text,
}


def finish(
    store: NightStore, night: Night, found: Sequence[Result], baseline: Baseline
) -> tuple[Night, int]:
    """Write all files of a night and pack what its runs left; returns it and its exit code."""
    night, found = _without_the_impossible(night, found)
    of_night = digest(store, night, found, baseline)
    worse = tuple(item.result.key for item in of_night.of(Kind.WORSE))
    night = dataclasses.replace(night, code=of_night.code, worse=worse, finished=wall_clock())
    store.save_results(night.name, found)
    evidence = store.evidence(night.name)
    for name, write in WRITERS.items():
        replace_text(store.folder(night.name) / name, write(of_night, evidence))
    store.save(night)
    store.compress(night.name)
    return night, of_night.code


def tidy(store: NightStore) -> None:
    """Pack the runs of nights that are over, if somebody was killed while doing so."""
    for night in store.nights():
        if night.finished:
            store.compress(night.name)


def accepted(night: Night) -> Night:
    """A night that a person says is as it should be."""
    return dataclasses.replace(night, accepted=True)


def _without_the_impossible(
    night: Night, found: Sequence[Result]
) -> tuple[Night, Sequence[Result]]:
    """Without the kernels that nobody asked for and of which no test could run, but with why."""
    for label in night.optional:
        own = [each for each in found if each.kernel == label]
        if own and all(each.outcome is Status.SKIPPED for each in own):
            night = dataclasses.replace(
                night,
                kernels={key: kernel for key, kernel in night.kernels.items() if key != label},
                cases={key: cases for key, cases in night.cases.items() if key != label},
                left=[key for key in night.left if key.kernel != label],
                notes=[*night.notes, f"not on {label}: {own[0].summary}"],
            )
            found = [each for each in found if each.kernel != label]
    return night, found
