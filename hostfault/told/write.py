"""The data and the tables of docs/told.md; its words are its author's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hostfault.case.model import VmmDeed, to_json
from hostfault.report.document import fill
from hostfault.told.plan import CELLS, Measurement
from hostfault.told.run import ToldRun

_CASE_COLUMNS = ("backing", "fault", "access", "apf", "gets", "afterwards", "`--only`")
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "outcomes": ("host kernel", "policy", "the task gets", "told", "afterwards", "`--only`"),
    "guests": ("guest", "the access gets", "afterwards", "`--only`"),
    "hard": ("access", "policy", "gets", "afterwards", "`--only`"),
    "intel": ("host kernel", "policy", "access", "apf", "gets", "told", "afterwards", "`--only`"),
    "crowds": ("tasks", "policy", "they get", "told", "`--only`"),
    "qemus": ("QEMU", "host kernel", "policy", "case", "gets", "told", "afterwards", "`--only`"),
    "saves": ("backing", "fault", "QEMU", "host kernel", "the vCPU", "the guest", "`--only`"),
    "exits": ("host kernel", "a run of the work, in the median of five", "told", "`--only`"),
    "own": ("host kernel", "policy", "the guest's kernel gets", "told", "afterwards", "`--only`"),
    "same": ("fault", "host kernel", "policy", "gets", "afterwards", "`--only`"),
}


def as_json(result: ToldRun) -> dict[str, Any]:
    """A result as it is kept."""
    return {**to_json(result), "deeds": [to_json(deed) for deed in result.deeds]}


def load(path: Path) -> list[ToldRun]:
    """The newest result of each cell that there still is, in the order of the plan."""
    if not path.exists():
        return []
    newest: dict[str, ToldRun] = {}
    for line in path.read_text().splitlines():
        try:
            said = json.loads(line)
            deeds = tuple(VmmDeed(**deed) for deed in said.pop("deeds"))
            result = ToldRun(**said, deeds=deeds)
        except (ValueError, TypeError, KeyError):  # cut short, or of an older form
            continue
        newest[result.cell] = result
    return [newest[cell.key] for cell in CELLS if cell.key in newest]


def lines(results: Sequence[ToldRun]) -> Iterator[str]:
    """One line a result, for a terminal."""
    for each in results:
        yield f"{each.cell}: {each.verdict.upper()}  {each.summary}"


def write(results: Sequence[ToldRun], document: Path) -> list[Path]:
    """Bring the document's tables up to date, and write the data beside it."""
    data = document.with_suffix("") / "cells.json"
    data.parent.mkdir(exist_ok=True)
    cells = {cell.key: cell for cell in CELLS}
    whole = [{**_of_cell(cells[each.cell]), **as_json(each)} for each in results]
    data.write_text("[\n" + ",\n".join(json.dumps(each) for each in whole) + "\n]\n")
    document.write_text(fill(document.read_text(), tables(results)))
    return [document, data]


def _of_cell(cell: Measurement) -> dict[str, Any]:
    rest = {name: value for name, value in to_json(cell).items() if name not in ("key", "scenario")}
    return {**rest, **to_json(cell.scenario)}


def tables(results: Sequence[ToldRun]) -> dict[str, str]:
    """Every table of the page, by name."""
    found = {each.cell: each for each in results}
    return {
        name: _table([(cell, found[cell.key]) for cell in CELLS if _is_in(cell, name, found)], name)
        for name in dict.fromkeys(cell.table for cell in CELLS)
    }


def _is_in(cell: Measurement, table: str, found: Mapping[str, ToldRun]) -> bool:
    return cell.table == table and cell.key in found


def _table(rows: Sequence[tuple[Measurement, ToldRun]], name: str) -> str:
    if not rows:
        return "Not measured yet."
    columns = _COLUMNS.get(name, _CASE_COLUMNS)
    shown = [columns, tuple("---" for _ in columns), *(_row(*row, name) for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in shown)


def _row(cell: Measurement, result: ToldRun, table: str) -> tuple[str, ...]:
    cells = _CELLS.get(table, _cells_of_a_case)
    return (*cells(cell, result), f"`{cell.key}`")


def _cells_of_a_case(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    case = cell.scenario
    end = (_apf(cell), _gets(result), _afterwards(result))
    return (case.backing, case.fault, case.access, *end)


def _cells_of_an_outcome(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    kernel = f"`{cell.kernel}`" + (f", {cell.words}" if cell.words else "")
    return (kernel, cell.policy, _gets(result), _told(result), _afterwards(result))


def _cells_of_qemu(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    case = cell.scenario
    what = f"{case.backing}, {case.fault}, {case.access}"
    end = (_gets(result), _told(result), _afterwards(result))
    return (f"`{cell.qemu}`", f"`{cell.kernel}`", cell.policy, what, *end)


def _cells_of_intel(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    end = (_gets(result), _told(result), _afterwards(result))
    return (f"`{cell.kernel}`", cell.policy, cell.scenario.access, _apf(cell), *end)


def _cells_of_a_save(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    begin = (cell.scenario.backing, cell.scenario.fault, f"`{cell.qemu}`", f"`{cell.kernel}`")
    return (*begin, cell.words, result.summary)


def _cells_of_a_crowd(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    cpu = f"; vCPUs at {result.cpu_share:.0%} of a core" if result.cpu_share else ""
    return (cell.words, cell.policy, f"{_gets(result)}{cpu}", _told(result))


def _cells_of_its_own(cell: Measurement, result: ToldRun) -> tuple[str, ...]:
    words = f"`{result.verdict}`: {result.summary}"
    return (f"`{cell.kernel}`", cell.policy, words, _told(result), _afterwards(result))


_CELLS: Mapping[str, Callable[[Measurement, ToldRun], tuple[str, ...]]] = {
    "outcomes": _cells_of_an_outcome,
    "qemus": _cells_of_qemu,
    "intel": _cells_of_intel,
    "saves": _cells_of_a_save,
    "crowds": _cells_of_a_crowd,
    "own": _cells_of_its_own,
    "exits": lambda of, it: (f"`{of.kernel}`, {of.words}", it.summary, _told(it)),
    "guests": lambda of, it: (of.words, _gets(it), _afterwards(it)),
    "hard": lambda of, it: (of.scenario.access, of.policy, _gets(it), _afterwards(it)),
    "same": lambda of, it: (
        *(of.scenario.fault, f"`{of.kernel}`", of.policy),
        *(_gets(it), _afterwards(it)),
    ),
}


def _apf(cell: Measurement) -> str:
    return "yes" if cell.scenario.async_pf else "no"


def _told(result: ToldRun) -> str:
    return f"{result.told:,}"


def _gets(result: ToldRun) -> str:
    """The verdict, and what there is to say about it in a few words."""
    if " got a signal" in result.summary:  # a crowd's
        return f"`{result.verdict}`: {result.summary}"
    words = {
        "task-error": result.summary.split(", si_addr")[0],
        "spin": f"nothing: {result.faults:,} faults on the page, and counting",
        "guest-death": result.summary.rsplit("] ", 1)[-1],
        "vm-exit": "nothing: the vCPU waits" if result.recovery == "goes-on" else _why(result),
    }
    return f"`{result.verdict}`: {words.get(result.verdict, result.summary)}"


def _why(result: ToldRun) -> str:
    """Why the VM stopped in spite of a policy, where its log says so."""
    passed = [deed.words.removeprefix("why ") for deed in result.deeds if deed.did == "passed"]
    return f"nothing, the VM stops: {passed[-1]}" if passed else "nothing, the VM stops"


def _afterwards(result: ToldRun) -> str:
    if result.again:
        return f"lives; the page given back: {result.again}"
    if result.recovery:
        back = f", {result.back}" if result.recovery == "goes-on-after-cont" else ""
        return f"the page given back: {result.recovery}{back}"
    return "lives" if result.guest_answers and result.verdict != "guest-death" else "-"
