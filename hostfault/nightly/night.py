"""Runs a night to its end, or on from where it was stopped.

All that is known of a night is in its folder: a run of pytest that was cut off counts as far as it
had reported, whoever ended it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hostfault.nightly import plan, reading, results, runs, sets
from hostfault.nightly.results import Key, Result, Status
from hostfault.nightly.runs import PytestEnd, PytestPrograms
from hostfault.nightly.store import Night, NightStore, replace_text
from hostfault.plumbing.deadline import now, wall_clock

Say = Callable[[str], None]
# pytest's codes for a run that came to its end: what it did not report it never will. (2 is an
# interruption, and negative ones are signals.)
_CAME_TO_ITS_END = (0, 1, 3, 4, 5)


class Runner:
    """Runs what is missing of one night."""

    def __init__(
        self,
        store: NightStore,
        night: Night,
        programs: PytestPrograms,
        measured: Sequence[Result],
        retry: Callable[[Result], bool],
        say: Say,
    ) -> None:
        """``measured``: results of other nights, for what a test takes.

        ``retry`` says whether a result is worth a second look; each test gets one.
        """
        self.night = night
        self._store = store
        self._programs = programs
        self._measured = measured
        self._retry = retry
        self._say = say
        self._folder = store.folder(night.name)
        self._runs = self._folder / "runs"
        # Kernels on which pytest died without a word: one test a run, to know which it was.
        self._alone: set[str] = set()

    def run(self, first: Sequence[Key]) -> list[Result]:
        """Run until all is done or the minutes are over; ``first`` are the cells to begin with.

        Returns the results; ``night`` then has what was left.
        """
        cells = [Key(label, case) for label, cases in self.night.cases.items() for case in cases]
        while True:
            found = self.found()
            self._store.save_results(self.night.name, found)
            pending = self._pending(plan.in_order(cells, first), found)
            seconds = self.night.minutes * 60 - self.night.spent
            costs = plan.costs([*self._measured, *found])
            batch = plan.next_batch(pending, seconds, costs, self._alone)
            if not batch:
                self._update(dataclasses.replace(self.night, left=tuple(pending)))
                return found
            self._run(batch, seconds, found)

    def found(self) -> list[Result]:
        """The results so far, from what the runs left."""
        found: list[Result] = []
        for run in self._run_folders():
            label = str(reading.read_object(_beside(run, "json")).get("kernel", ""))
            found += reading.read_run(run, self._folder, label, _attempts(found, label))
            lost = reading.read_object(_beside(run, "lost")).get("lost", [])
            found += [results.from_json(each) for each in lost]
        return found

    def _run(self, batch: Sequence[Key], seconds: float, before: Sequence[Result]) -> None:
        label = batch[0].kernel
        cases = [key.case for key in batch]
        number = len(self._run_folders()) + 1
        folder = self._runs / "-".join((f"{number:03}", re.sub(r"[^\w.+-]+", "-", label)))
        self._say(f"{label}: {len(cases)} tests, {seconds / 60:.1f} minutes are left")
        runs.note(folder, label, cases)
        begun, spent = now(), self.night.spent
        try:
            ended = runs.run(
                self._programs,
                self.night.kernels[label],
                cases,
                folder,
                seconds,
                (*sets.load()[self.night.set].options, *self.night.options),
            )
        finally:
            self._update(dataclasses.replace(self.night, spent=spent + now() - begun))
        reported = {
            each.case
            for each in reading.read_run(folder, self._folder, label, _attempts(before, label))
        }
        self._say(_in_words(label, len(reported), len(cases), ended))
        self._alone.discard(label)
        missing = [case for case in cases if case not in reported]
        if not missing or ended.code is None:
            return
        if ended.code in _CAME_TO_ITS_END or (not reported and len(cases) == 1):
            self._lose(folder, label, missing, ended)
        elif not reported:
            self._alone.add(label)

    def _lose(self, folder: Path, label: str, cases: Sequence[str], ended: PytestEnd) -> None:
        """Record as trouble the tests that a run will never report."""
        words = [line for line in ended.words.splitlines() if line.strip()]
        error = next((line for line in words if line.startswith("ERROR")), "")
        attempts = _attempts(self.found(), label)
        lost = [
            Result(
                kernel=label,
                case=case,
                outcome=Status.HARNESS,
                attempt=attempts.get(case, 0) + 1,
                summary=(error or "".join(words[-1:]))[: reading.LIMIT],
                reason=f"pytest ended with code {ended.code}",
                began=wall_clock(),
            )
            for case in cases
        ]
        data = {"lost": [results.to_json(each) for each in lost]}
        replace_text(_beside(folder, "lost"), json.dumps(data) + "\n")

    def _pending(self, cells: Sequence[Key], found: Sequence[Result]) -> list[Key]:
        """The cells that have no result, and those that get a second look, which come first."""
        count = {(each.key): 0 for each in found}
        for each in found:
            count[each.key] += 1
        last = results.latest(found)
        again = [key for key in cells if key in last and count[key] == 1 and self._retry(last[key])]
        return again + [key for key in cells if key not in last]

    def _update(self, night: Night) -> None:
        self.night = night
        self._store.save(night)

    def _run_folders(self) -> list[Path]:
        if not self._runs.is_dir():
            return []
        return sorted(path for path in self._runs.iterdir() if path.is_dir())


def resumed(night: Night, store: NightStore) -> Night:
    """A night that was stopped, with the time that its last run took and nobody counted.

    Whoever was killed could not say how long the run had gone on; its log's last word does.
    """
    folder = store.folder(night.name)
    notes = sorted((folder / "runs").glob("*.json"))
    if not notes or notes[-1].stat().st_mtime < (folder / "night.json").stat().st_mtime:
        return night  # nothing ran since its time was written down
    run = notes[-1].with_name(notes[-1].name.removesuffix(".json"))
    spent = reading.seconds_of(run, notes[-1])
    return dataclasses.replace(night, spent=night.spent + spent)


def _attempts(found: Sequence[Result], label: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for each in found:
        if each.kernel == label:
            counts[each.case] = counts.get(each.case, 0) + 1
    return counts


def _beside(run: Path, suffix: str) -> Path:
    return run.with_name(f"{run.name}.{suffix}")


def _in_words(label: str, reported: int, asked: int, ended: PytestEnd) -> str:
    how = "its time was over" if ended.code is None else f"pytest ended with code {ended.code}"
    return f"{label}: {reported} of {asked} tests reported, {how}"
