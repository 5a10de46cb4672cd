"""Write the study's data, figures and tables; the words of docs/error-table.md are its author's.

A table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; what is between is replaced.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hostfault.report.document import fill
from hostfault.study import figures, frames, stats
from hostfault.study.plan import Cell
from hostfault.study.run import ENOUGH, StudyRun
from hostfault.study.stats import Middle, Proportion, Summary

TWO_ROUNDS = 64  # faults: every one of 32 tasks has failed twice

HASHES = (8, 16, 32, 64)  # slots
CROWDS = (16, 32, 64, 128)  # tasks

Column = tuple[str, Callable[[Cell, Summary], str]]


def write(cells: Sequence[Cell], results: Sequence[StudyRun], document: Path) -> list[Path]:
    """Bring the document's tables up to date, and write the data and figures beside it.

    Returns what was written. Raises :class:`SetupError` for a document with an unknown table.
    """
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    found = summaries(cells, results)
    data = folder / "cells.json"
    data.write_text(_lines([{**dataclasses.asdict(each)} for each in found.values()]))
    runs = folder / "runs.json"
    runs.write_text(_lines([dataclasses.asdict(each) for each in _sorted(cells, results)]))
    known = tables(cells, found) | {
        "alone": alone_table(cells, results),
        "draws": draws_table(),
    }
    document.write_text(fill(document.read_text(), known))
    return [document, data, runs, *figures.draw(cells, results, folder)]


def summaries(cells: Sequence[Cell], results: Sequence[StudyRun]) -> dict[str, Summary]:
    """The cells that have runs, summed up, by key."""
    known = {result.cell for result in results}
    return {cell.key: stats.summary(cell, results) for cell in cells if cell.key in known}


def tables(cells: Sequence[Cell], found: Mapping[str, Summary]) -> dict[str, str]:
    """Every table, by name."""
    mine = [cell for cell in cells if cell.key in found]
    return {
        name: table([(cell, found[cell.key]) for cell in mine if wanted(cell)], columns)
        for name, (wanted, columns) in TABLES.items()
    }


def alone_table(cells: Sequence[Cell], results: Sequence[StudyRun]) -> str:
    """How soon a hash ends the loop, by whether any frame has a slot of its own."""
    slots = {cell.key: cell.slots for cell in cells if _hashed(cell)}
    groups: dict[bool, list[StudyRun]] = {True: [], False: []}
    for each in results:
        if each.cell in slots:
            groups[frames.alone(each.gfns, slots[each.cell]) > 0].append(each)
    lines = ["| frames alone in their slot | exits within two rounds | faults to the end, median |"]
    lines.append("| --- | --- | --- |")
    for any_alone, mine in groups.items():
        soon = [each for each in mine if each.outcome == "exit" and each.faults <= TWO_ROUNDS]
        share = _share(stats.wilson(len(soon), len(mine)))
        faults = _middle(stats.middle([each.faults for each in mine])) if mine else "-"
        lines.append(f"| {'some' if any_alone else 'none'} | {share} | {faults} |")
    return "\n".join(lines)


def draws_table() -> str:
    """How often chance leaves no frame alone in its slot, in per cent; calculated."""
    lines = [f"| bad tasks | {' | '.join(f'hash of {slots}' for slots in HASHES)} |"]
    lines.append(f"| --- |{' --- |' * len(HASHES)}")
    for number in CROWDS:
        shares = [_per_cent(frames.none_alone(number, slots)) for slots in HASHES]
        lines.append(f"| {number} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _per_cent(share: float) -> str:
    """With two digits that say something, at either end."""
    if share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if share > 0.999 else f"{share * 100:.1f} %"


def _hashed(cell: Cell) -> bool:
    return cell.lookup == "hash" and bool(cell.behind) and cell.bad == TWO_ROUNDS // 2


def table(rows: Sequence[tuple[Cell, Summary]], columns: Sequence[Column]) -> str:
    """A table in Markdown."""
    lines = [[title for title, _ in columns], ["---" for _ in columns]]
    lines += [[show(cell, row) for _, show in columns] for cell, row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(share: Proportion) -> str:
    return f"{share.yes}/{share.of} ({share.low * 100:.0f} to {share.high * 100:.0f} %)"


def _middle(middle: Middle) -> str:
    return f"{_count(middle.value)} ({_count(middle.low)} to {_count(middle.high)})"


def _count(value: float) -> str:
    return f"≥ {ENOUGH:,}" if value >= ENOUGH else f"{value:,.0f}"


def _exits(_: Cell, row: Summary) -> str:
    full = row.outcomes.get("queue-full", 0)
    return _share(row.exits) + (f", queue full {full}" if full else "")


def _outcomes(_: Cell, row: Summary) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(row.outcomes.items()))


def _blames(_: Cell, row: Summary) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(row.blames.items())) or "-"


def _arrangement(cell: Cell, _: Summary) -> str:
    failure = f"{cell.delay / 1000:g} ms" if cell.delay else "at once"
    if cell.behind:
        failure = "just late"
    words = [f"{cell.bad} of {cell.tasks}", cell.policy, failure]
    words += [f"{cell.vcpus} vCPUs"] * (cell.vcpus > 1) + ["moved"] * cell.move
    words += ["colliding"] * (cell.frames == "collide") + ["no-kvmapf"] * (not cell.async_pf)
    return ", ".join(words + ["nothing truncated"] * (not cell.gone))


def _fix(cell: Cell, _: Summary) -> str:
    if not cell.lookup:
        return cell.fix
    return f"{NAMES.get(cell.lookup, cell.lookup)} of {cell.slots}"


NAMES = {"keep": "kept array"}
FIX: Column = ("fix", _fix)
CASE: Column = ("case", _arrangement)
EXITS: Column = ("exits", _exits)
OUTCOMES: Column = ("outcomes", _outcomes)
FAULTS: Column = ("faults to the end, median", lambda _, row: _middle(row.faults))
PER_FRAME: Column = ("per frame, mean", lambda _, row: f"{row.per_frame:.1f}")
LOST: Column = ("lost or dropped, median", lambda _, row: f"{row.lost.value:,.0f}")
CULPRITS: Column = ("culprit on the vCPU", lambda _, row: _share(row.culprits))
BLAMED: Column = ("on the vCPU at the exit", _blames)
NAMED: Column = ("bad frame named", lambda _, row: _share(row.named))
SECONDS: Column = ("seconds, median", lambda _, row: f"{row.seconds:.2f}")

TABLES: Mapping[str, tuple[Callable[[Cell], bool], Sequence[Column]]] = {
    "slots": (
        lambda cell: bool(cell.behind) and cell.bad == 32 and cell.frames == "random",
        (FIX, EXITS, FAULTS, PER_FRAME, LOST, CULPRITS, SECONDS),
    ),
    "natural": (
        lambda cell: (
            bool(cell.lookup) and not cell.behind and cell.vcpus == 1 and cell.frames == "random"
        ),
        (FIX, CASE, EXITS, FAULTS, LOST, CULPRITS),
    ),
    "collide": (
        lambda cell: cell.frames == "collide",
        (FIX, CASE, EXITS, FAULTS, LOST),
    ),
    "crowds": (
        lambda cell: bool(cell.behind) and cell.bad != 32,
        (FIX, CASE, EXITS, FAULTS, PER_FRAME, LOST),
    ),
    "request": (
        lambda cell: cell.fix in ("exit-request", "fail-at-once") and cell.vcpus == 1,
        (FIX, CASE, EXITS, FAULTS, CULPRITS, BLAMED, NAMED),
    ),
    "vcpus": (
        lambda cell: cell.vcpus > 1,
        (FIX, CASE, EXITS, FAULTS, CULPRITS, BLAMED),
    ),
    "stock": (
        lambda cell: cell.fix == "stock",
        (CASE, OUTCOMES, FAULTS, PER_FRAME),
    ),
}


def _sorted(cells: Sequence[Cell], results: Sequence[StudyRun]) -> list[StudyRun]:
    order = {cell.key: number for number, cell in enumerate(cells)}
    mine = [result for result in results if result.cell in order]
    return sorted(mine, key=lambda result: (order[result.cell], result.repeat))


def _lines(items: Sequence[Mapping[str, object]]) -> str:
    """A JSON list with one item a line, so that a change shows as few lines."""
    return "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]\n"
