"""The matrix as a picture: a band for each kernel, a square for each cell. Needs matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hostfault.access import ACCESSES
from hostfault.case.model import RecoveryKind, Scenario, VerdictKind
from hostfault.fault import FAULTS
from hostfault.matrix.page import configuration_of
from hostfault.matrix.result import ERROR, Run, cells_of
from hostfault.plumbing.errors import SetupError

# Okabe and Ito's colours, which people tell apart whatever their eyes; and a letter each.
LOOKS: Mapping[str, tuple[str, str]] = {
    VerdictKind.OK: ("#e8f4ee", ""),
    VerdictKind.TASK_ERROR: ("#009e73", "T"),
    VerdictKind.VM_EXIT: ("#56b4e9", "V"),
    VerdictKind.SPIN: ("#d55e00", "S"),
    VerdictKind.STALL: ("#e69f00", "Z"),
    VerdictKind.STALE: ("#cc79a7", "X"),
    VerdictKind.VCPU_STUCK: ("#cc79a7", "U"),
    VerdictKind.HOST_BUG: ("#cc79a7", "B"),
    VerdictKind.GUEST_DEATH: ("#2b2b2b", "G"),
    VerdictKind.VMM_DEATH: ("#2b2b2b", "Q"),
    VerdictKind.HOST_DEATH: ("#2b2b2b", "H"),
    ERROR: ("#ffffff", "?"),
}
MARKS: Mapping[str, str] = {
    RecoveryKind.GOES_ON: "o",
    RecoveryKind.GOES_ON_AFTER_CONT: "o",
    RecoveryKind.LOST: "x",
}
DARK = {"#2b2b2b", "#009e73", "#d55e00"}  # letters on them are white
SQUARE = 0.19  # inches
GAP = 1  # squares between two backings
LETTER = 0.42  # squares that one of a backing's name takes
NAMES = 6.5  # squares that the names of faults take, left of the first backing
HEAD = 3.2  # squares that a kernel's and its backings' names take, above those of accesses
SMALL = 0.24  # squares that one letter of an access's name takes
LEGEND = 0.9  # inches

ColumnKey = tuple[str, str]  # backing, and access with the kind of guest


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the SVG; the same data gives the same file. Raises :class:`SetupError`.

    Kernels are below each other, and each backing is a group of columns, the same in all of them.
    """
    plt = _pyplot()
    columns = columns_of(runs)
    heights = [_head(columns) + len(rows_of(run)) for run in runs]
    width = NAMES + max(columns.values()) + 3.0
    size = (width * SQUARE, sum(heights) * SQUARE + LEGEND)
    figure = plt.figure(figsize=size)
    bottom = size[1] - LEGEND  # from which the next kernel goes down, inches
    for run, height in zip(runs, heights, strict=True):
        bottom -= height * SQUARE
        place = (0.0, (bottom + LEGEND) / size[1], 1.0, height * SQUARE / size[1])
        _panel(figure.add_axes(place), run, columns)
    _legend(figure, {each.verdict for run in runs for each in run.results.values()})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def columns_of(runs: Sequence[Run]) -> Mapping[ColumnKey, int]:
    """Where each column is, in squares: of every backing those that any kernel was measured in."""
    cells = cells_of(runs)
    backings = list(dict.fromkeys(cell.backing for cell in cells))
    accesses = [access.name for access in ACCESSES]

    def rank(cell: Scenario) -> tuple[int, bool, int, int]:
        where = backings.index(cell.backing), not cell.async_pf
        return *where, accesses.index(cell.access), cell.vcpus

    places: dict[ColumnKey, int] = {}
    begin = 0
    for backing, group in itertools.groupby(sorted(cells, key=rank), key=lambda cell: cell.backing):
        keys = dict.fromkeys(map(_column, group))
        places |= {key: begin + at for at, key in enumerate(keys)}
        begin += max(len(keys), math.ceil(len(backing) * LETTER)) + GAP
    return places


def _column(cell: Scenario) -> ColumnKey:
    kind = configuration_of(cell).removeprefix("apf").removeprefix(", ")
    return cell.backing, ", ".join(filter(None, (cell.access, kind)))


def rows_of(run: Run) -> list[str]:
    """The faults that were measured on a kernel, in the order of their registry."""
    measured = {result.scenario.fault for result in run.results.values()}
    return [fault.name for fault in FAULTS if fault.name in measured]


def _panel(axes: Any, run: Run, columns: Mapping[ColumnKey, int]) -> None:
    """One kernel, with the rows that were measured on it."""
    rows, head = rows_of(run), _head(columns)
    axes.set_axis_off()
    axes.set_xlim(-NAMES - 0.5, max(columns.values()) + 2.5)
    axes.set_ylim(len(rows) - 0.5, -head - 0.5)
    axes.text(-NAMES, -head + 0.6, run.kernel, fontsize=11, fontweight="bold", va="center")
    for y, fault in enumerate(rows):
        axes.text(-0.8, y, fault, fontsize=7, ha="right", va="center")
        axes.plot([-0.5, max(columns.values()) + 0.5], [y, y], color="#dddddd", lw=0.4, zorder=0)
    _name_columns(axes, columns)
    for result in run.results.values():
        x = columns[_column(result.scenario)]
        y = rows.index(result.scenario.fault)
        _square(axes, x, y, result.verdict, result.recovery)


def _head(columns: Mapping[ColumnKey, int]) -> float:
    """Squares above each kernel's rows: the longest name of a column is upright there."""
    return HEAD + SMALL * max(len(access) for _, access in columns)


def _name_columns(axes: Any, columns: Mapping[ColumnKey, int]) -> None:
    """A backing above its accesses, and a line below its name, as wide as they are."""
    head = _head(columns)
    extents: dict[str, list[int]] = {}
    for (backing, access), x in columns.items():
        extents.setdefault(backing, []).append(x)
        axes.text(x, -0.7, access, fontsize=6, rotation=90, ha="center", va="bottom")
    for backing, (first, *_, last) in ((key, [*at, at[-1]]) for key, at in extents.items()):
        axes.text(first - 0.45, -head + 1.8, backing, fontsize=7, fontweight="bold", va="center")
        axes.plot([first - 0.45, last + 0.45], [-head + 2.4] * 2, color="black", linewidth=0.6)


def _square(axes: Any, x: int, y: int, verdict: str, recovery: str) -> None:
    """One cell: the verdict fills it, the recovery is in its corner."""
    rectangle = import_module("matplotlib.patches").Rectangle
    colour, letter = LOOKS[verdict]
    ink = "white" if colour in DARK else "black"
    axes.add_patch(
        rectangle(
            (x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="#999999", linewidth=0.3
        )
    )
    axes.text(x - 0.1, y + 0.02, letter, ha="center", va="center", fontsize=6, color=ink)
    if recovery in MARKS:
        hollow = recovery == RecoveryKind.GOES_ON_AFTER_CONT
        face = "none" if hollow else ink
        axes.plot(
            [x + 0.28],
            [y - 0.26],
            MARKS[recovery],
            markersize=2.2,
            color=ink,
            markerfacecolor=face,
            markeredgewidth=0.6,
        )


def _legend(figure: Any, verdicts: set[str]) -> None:
    patch = import_module("matplotlib.patches").Patch
    line = import_module("matplotlib.lines").Line2D
    handles = [
        patch(facecolor=colour, edgecolor="#999999", label=f"{letter} {verdict}".strip())
        for verdict, (colour, letter) in LOOKS.items()
        if verdict in verdicts
    ]
    words = {
        RecoveryKind.GOES_ON: "when undone: goes on",
        RecoveryKind.GOES_ON_AFTER_CONT: "goes on after cont",
        RecoveryKind.LOST: "lost",
    }
    for kind, text in words.items():
        face = "none" if kind == RecoveryKind.GOES_ON_AFTER_CONT else "black"
        handles.append(
            line(
                [],
                [],
                marker=MARKS[kind],
                linestyle="",
                color="black",
                markerfacecolor=face,
                markersize=4,
                label=text,
            )
        )
    figure.legend(handles=handles, loc="lower center", ncols=9, fontsize=8, frameon=False)


def _pyplot() -> Any:
    try:
        matplotlib = import_module("matplotlib")
    except ImportError as error:
        raise SetupError(
            "the picture needs matplotlib: ci/matrix installs it, or: pip install '.[study]'"
        ) from error
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "hostfault", "font.size": 8})
    return import_module("matplotlib.pyplot")
