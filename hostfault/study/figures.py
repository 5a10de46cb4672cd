"""The study's figures, as SVG. Needs matplotlib (the extra ``study``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hostfault.plumbing.errors import SetupError
from hostfault.study import plan
from hostfault.study.plan import Cell
from hostfault.study.run import ENOUGH, StudyRun
from hostfault.study.stats import whom

COLOURS = {"array": "#0b6aa8", "hash": "#c2571a", "keep": "#2a7f4f"}
OFFSETS = {"array": -0.24, "hash": 0.0, "keep": 0.24}
LABELS = {"array": "array, oldest entry out", "hash": "hash", "keep": "array, entries kept"}
BLAMES = {
    "culprit": ("the task that touched the page", "#2a7f4f"),
    "other": ("another that touches a bad page", "#a5c882"),
    "elsewhere": ("such a task, at another place", "#d9c84a"),
    "busy": ("a task that touched nothing", "#c2571a"),
    "kernel": ("the guest's kernel", "#8a8a8a"),
    "unknown": ("something else", "#d6d6d6"),
}


def draw(cells: Sequence[Cell], results: Sequence[StudyRun], folder: Path) -> list[Path]:
    """Draw every figure into ``folder``; returns the files.

    Raises :class:`SetupError` if matplotlib is not there.
    """
    by_cell: dict[str, list[StudyRun]] = {}
    for result in results:
        by_cell.setdefault(result.cell, []).append(result)
    measured = [cell for cell in cells if cell.key in by_cell]
    figures: Mapping[str, Callable[[Any, Sequence[Cell], Mapping[str, list[StudyRun]]], None]] = {
        "slots": _slots,
        "crowds": _crowds,
        "blame": _blame,
    }
    return [
        _save(folder / f"{name}.svg", draw, measured, by_cell) for name, draw in figures.items()
    ]


def _save(path: Path, draw: Callable[..., None], *data: object) -> Path:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
    draw(axes, *data)
    axes.spines[["top", "right"]].set_visible(False)
    # No date, and ids that do not change: the same data gives the same file.
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def _pyplot() -> Any:
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise SetupError(
            "the figures need matplotlib: ci/error-table installs it, or: pip install '.[study]'"
        ) from error
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hostfault", "font.size": 10})
    return import_module("matplotlib.pyplot")


def _slots(axes: Any, cells: Sequence[Cell], results: Mapping[str, list[StudyRun]]) -> None:
    """Faults until the exit, by the size of the table: one dot a run."""
    reference = Cell("error-table", behind=1)
    mine = [cell for cell in cells if _like(cell, reference, "lookup", "slots")]
    _dots(axes, mine, results, plan.SLOTS, lambda cell: cell.slots, "lower left")
    axes.set_xlabel("slots of the table, per vCPU")
    axes.set_title("128 tasks take turns, 32 of them touch a page that is gone", loc="left")


def _crowds(axes: Any, cells: Sequence[Cell], results: Mapping[str, list[StudyRun]]) -> None:
    """The same by the number of bad tasks, for a table of 8."""
    reference = Cell("error-table", slots=8, behind=1)
    mine = [cell for cell in cells if _like(cell, reference, "lookup", "bad")]
    sizes = sorted({*plan.SIZES, 32})
    _dots(axes, mine, results, sizes, lambda cell: cell.bad, "lower right")
    axes.set_xlabel("tasks that touch a page that is gone, of 128")
    axes.set_title("a table of 8 slots", loc="left")


def _dots(
    axes: Any,
    cells: Sequence[Cell],
    results: Mapping[str, list[StudyRun]],
    ticks: Sequence[int],
    place: Callable[[Cell], int],
    legend: str,
) -> None:
    for cell in cells:
        runs = sorted((min(each.faults, ENOUGH), each.outcome) for each in results[cell.key])
        for number, (faults, outcome) in enumerate(runs):
            spread = 0.2 * (number / max(1, len(runs) - 1) - 0.5)
            at = ticks.index(place(cell)) + OFFSETS[cell.lookup] + spread
            mark = "x" if outcome == "queue-full" else "o"
            axes.plot([at], [faults], mark, ms=4, color=COLOURS[cell.lookup], alpha=0.7)
    for lookup in dict.fromkeys(cell.lookup for cell in cells):
        axes.plot([], [], "o", color=COLOURS[lookup], label=LABELS[lookup])
    if any(each.outcome == "queue-full" for cell in cells for each in results[cell.key]):
        axes.plot([], [], "x", color="#555555", label="stopped by KVM's full queue")
    axes.axhline(ENOUGH, color="#555555", lw=0.8, ls="--")
    axes.text(len(ticks) - 0.5, ENOUGH * 1.1, "cut off: spins", ha="right", color="#555555")
    axes.set_yscale("log")
    axes.set_ylim(0.8, ENOUGH * 2)
    axes.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
    axes.set_ylabel("asynchronous faults until the exit")
    axes.legend(frameon=False, loc=legend)


def _blame(axes: Any, _: Sequence[Cell], results: Mapping[str, list[StudyRun]]) -> None:
    """Who is on the vCPU at the exit, one bar an arrangement."""
    bars = {
        f"{title}\n{_regime(cell)}": [
            whom(each) for each in results[cell.key] if each.outcome == "exit"
        ]
        for title, cell in _blame_cells()
        if cell.key in results
    }
    bottom = [0.0] * len(bars)
    for blame, (label, colour) in BLAMES.items():
        shares = [100 * mine.count(blame) / max(1, len(mine)) for mine in bars.values()]
        if any(shares):
            axes.barh(list(bars), shares, left=bottom, color=colour, label=label)
        bottom = [before + share for before, share in zip(bottom, shares, strict=True)]
    for at, mine in enumerate(bars.values()):
        axes.text(101, at, f"n={len(mine)}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xlabel("% of exits, by what is on the vCPU")
    axes.figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _blame_cells() -> list[tuple[str, Cell]]:
    request = [
        ("exit-request", Cell("exit-request", policy=policy, delay=delay))
        for delay in (plan.SLOW, 0)
        for policy in ("rr", "fair")
    ]
    return [
        *request,
        ("error-table, array of 64", Cell("error-table", "array", 64, behind=1)),
        ("fail-at-once", Cell("fail-at-once")),
    ]


def _regime(cell: Cell) -> str:
    if cell.behind:
        return f"failures just late, {cell.policy}"
    when = f"after {cell.delay // 1000} ms" if cell.delay else "at once"
    return f"failures {when}, {cell.policy}"


def _like(cell: Cell, reference: Cell, *free: str) -> bool:
    """Whether two cells are the same but for some fields (and how often they are run)."""
    fields = vars(reference).keys() - {*free, "repeats"}
    return all(getattr(cell, name) == getattr(reference, name) for name in fields)
