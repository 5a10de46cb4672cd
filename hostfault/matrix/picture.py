"""The matrix as a picture: one panel a kernel, a square for each cell. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hostfault.access import ACCESSES
from hostfault.case.model import RecoveryKind, Scenario, VerdictKind
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
SQUARE = 0.2  # inches
ABREAST = 3  # panels in a row; what is wider cannot be read on a page

RowKey = tuple[str, str]  # backing, and fault with the kind of guest; "" for the backing's heading


def draw(runs: Sequence[Run], path: Path) -> None:
    """Write the SVG; the same data gives the same file. Raises :class:`SetupError`."""
    plt = _pyplot()
    columns = [access.name for access in ACCESSES]
    lines = [runs[begin : begin + ABREAST] for begin in range(0, len(runs), ABREAST)]
    heights = [max(len(rows_of([run])) for run in line) * SQUARE + 1.5 for line in lines]
    abreast = len(lines[0])
    figure, panels = plt.subplots(
        len(lines),
        abreast,
        squeeze=False,
        figsize=(abreast * (len(columns) + 6.0) * SQUARE, sum(heights) + 0.8),
        height_ratios=heights,
        layout="constrained",
    )
    for axes in panels.flat[len(runs) :]:
        axes.set_axis_off()
    for axes, run in zip(panels.flat, runs, strict=False):
        _panel(axes, run, columns)
    _legend(figure, {each.verdict for run in runs for each in run.results.values()})
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def rows_of(runs: Sequence[Run]) -> list[RowKey]:
    """The rows of a panel: below a heading for each backing its faults."""
    rows: dict[RowKey, None] = {}
    for cell in cells_of(runs):
        rows.setdefault((cell.backing, ""))
        rows.setdefault(_row(cell))
    backings = list(dict.fromkeys(backing for backing, _ in rows))
    return sorted(rows, key=lambda row: backings.index(row[0]))


def _row(cell: Scenario) -> RowKey:
    kind = configuration_of(cell)
    return cell.backing, cell.fault if kind == "apf" else f"{cell.fault}, {kind}"


def _name_rows(axes: Any, rows: Sequence[RowKey]) -> None:
    axes.set_yticks(range(len(rows)), [fault or backing for backing, fault in rows], fontsize=7)
    for label, (_, fault) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if fault else "bold")


def _panel(axes: Any, run: Run, columns: Sequence[str]) -> None:
    """One kernel, with the rows that were measured on it."""
    rows = rows_of([run])
    _name_rows(axes, rows)
    axes.set_title(run.kernel, fontsize=9)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_aspect("equal", anchor="N")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for result in run.results.values():
        y = rows.index(_row(result.scenario))
        _square(axes, columns.index(result.scenario.access), y, result.verdict, result.recovery)


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
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)


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
