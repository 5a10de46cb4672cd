"""docs/matrix.md, made of what was measured. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from hostfault.case.model import RecoveryKind, Scenario, VerdictKind
from hostfault.case.words import guest_in_words
from hostfault.matrix.compare import pairs
from hostfault.matrix.result import ERROR, CellResult, Run, cells_of, has_page, is_right
from hostfault.plugin.cases import case_id
from hostfault.plugin.sets import KINDS, Matrix

TOLD_NOBODY = (VerdictKind.SPIN, VerdictKind.STALL, VerdictKind.VCPU_STUCK)

INTRODUCTION = """\
# The matrix: every way to lose a page, every way to touch it

What a guest sees of a page that the host cannot back any more, and what follows when the host can
back it again: two answers for each cell, which stand apart. `ci/matrix --write` has measured them
in emulated hosts and has written this page, its [data](matrix/data.json) and its picture.

Faults and accesses are in the [README](../README.md), verdicts and recoveries in
[verdicts.md](verdicts.md). `apf` is a guest with asynchronous page faults, `noapf` one without.
"""

PICTURE = """\
## At a glance

![Verdict and recovery of every cell](matrix/matrix.svg)

The colour and the letter are the verdict. The mark in the corner is the recovery: a dot, the access
goes on by itself; a ring, it goes on once QMP `cont` has set the VM going; a cross, it is lost.
"""


@dataclass(frozen=True)
class AlikeCells:
    """Cells that came to the same on every kernel, told together."""

    backing: str
    fault: str
    configuration: str
    accesses: tuple[str, ...]
    answers: tuple[str, ...]  # in the order of the kernels


def page(runs: Sequence[Run], matrix: Matrix) -> str:
    """All of it. The first run is that of the stock kernel."""
    parts = [
        INTRODUCTION,
        _measured(runs),
        PICTURE,
        "## How often each answer came\n",
        _counts(runs),
        "## Every cell\n",
        *_tables(runs),
        "## What cannot be\n",
        _impossible(matrix),
        "## In plain words\n",
        "\n".join(_words(runs)),
    ]
    return "\n".join(parts) + "\n"


# --- how much was measured --------------------------------------------------------------------


def _measured(runs: Sequence[Run]) -> str:
    days = sorted({day for run in runs for day in run.dates})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    total = sum(len(run.results) for run in runs)
    lines = [
        f"Measured on {when}: {len(cells_of(runs))} cells, on {len(runs)} kernels {total} times.",
        "",
        "| kernel | release | cells | seconds for one, median |",
        "|---|---|---|---|",
    ]
    for run in runs:
        seconds = median(result.seconds for result in run.results.values())
        lines.append(f"| `{run.kernel}` | {run.release} | {len(run.results)} | {seconds:.1f} |")
    return "\n".join([*lines, ""])


def _counts(runs: Sequence[Run]) -> str:
    verdicts = _counted(runs, "verdict", lambda result: result.verdict)
    recoveries = _counted(
        runs, "recovery", lambda result: result.recovery or "the access had ended"
    )
    return f"{verdicts}\n{recoveries}"


def _counted(runs: Sequence[Run], what: str, of: Callable[[CellResult], str]) -> str:
    """How many cells came to each answer, kernels side by side."""
    columns = [Counter(map(of, run.results.values())) for run in runs]
    names = sorted({name for column in columns for name in column})
    head = " | ".join(f"`{run.kernel}`" for run in runs)
    lines = [f"| {what} | {head} |", "|---|" + "---|" * len(runs)]
    for name in names:
        lines.append(f"| `{name}` | " + " | ".join(str(column[name]) for column in columns) + " |")
    return "\n".join([*lines, ""])


# --- the tables ---------------------------------------------------------------------------------


def _tables(runs: Sequence[Run]) -> Iterator[str]:
    found = lines(runs)
    head = " | ".join(f"`{run.kernel}`" for run in runs)
    for backing in dict.fromkeys(line.backing for line in found):
        yield f"### `{backing}`\n"
        yield f"| fault | guest | accesses | {head} |\n|---|---|---|" + "---|" * len(runs)
        for line in found:
            if line.backing == backing:
                accesses = ", ".join(line.accesses)
                answers = " | ".join(line.answers)
                yield f"| `{line.fault}` | {line.configuration} | {accesses} | {answers} |"
        yield ""


def lines(runs: Sequence[Run]) -> list[AlikeCells]:
    """The cells as lines; accesses that came to the same are on one."""
    grouped: dict[tuple[str, str, str, tuple[str, ...]], list[str]] = {}
    for cell in cells_of(runs):
        answers = tuple(_answer(run, cell) for run in runs)
        key = (cell.backing, cell.fault, configuration_of(cell), answers)
        grouped.setdefault(key, []).append(cell.access)
    return [
        AlikeCells(backing, fault, configuration, tuple(accesses), answers)
        for (backing, fault, configuration, answers), accesses in grouped.items()
    ]


def configuration_of(cell: Scenario) -> str:
    """What kind of guest, as in a case's id."""
    return guest_in_words(cell, "apf", "noapf")


def _answer(run: Run, cell: Scenario) -> str:
    result = run.results.get(case_id(cell))
    return result.answer if result else "not measured"


# --- in plain words -------------------------------------------------------------------------------


def _words(runs: Sequence[Run]) -> Iterator[str]:
    stock, *fixes = runs
    yield f"### Where `{stock.kernel}` tells nobody\n"
    yield from _about(stock)
    for fix in fixes:
        yield f"\n### Whom `{fix.kernel}` tells, and what it makes worse\n"
        yield from _about(fix)
        yield from _against(stock, fix)


def _about(run: Run) -> Iterator[str]:
    """Who is told on this kernel of a page that is not there, and what follows."""
    known = [each for each in run.results.values() if each.verdict != ERROR]
    gone = [each for each in known if not has_page(each.scenario)]
    nobody = [each for each in gone if each.verdict in TOLD_NOBODY]
    dead = [each for each in gone if each.verdict.endswith("-death")]
    yield f"- Of {len(gone)} cells without a page nobody is told in {len(nobody)}{_where(nobody)}."
    for what, verdict in (
        ("The task is told", VerdictKind.TASK_ERROR),
        ("The VM is stopped", VerdictKind.VM_EXIT),
    ):
        found = [each for each in gone if each.verdict == verdict]
        yield f"- {what} in {len(found)}{_where(found)}."
    if dead:
        yield f"- The guest or its VMM dies in {len(dead)}{_where(dead)}."
    wrong = [each for each in known if has_page(each.scenario) and not is_right(each)]
    if wrong:
        yield f"- Where there is a page, {len(wrong)} cells did not come to `ok`{_where(wrong)}."
    broken = [each for each in run.results.values() if each.verdict == ERROR]
    if broken:
        yield f"- No verdict was reached in {len(broken)}{_where(broken)}."
    on = sum(each.recovery == RecoveryKind.GOES_ON for each in gone)
    lost = sum(each.recovery == RecoveryKind.LOST for each in gone)
    yield f"- When the fault is undone, the access goes on in {on}, and is lost in {lost}."


def _against(stock: Run, fix: Run) -> Iterator[str]:
    """What a fix makes better and worse than stock."""
    both = pairs(stock.results, fix.results)
    better = sum(pair.verdict < 0 for pair in both)
    worse = [pair.patched for pair in both if pair.verdict > 0]
    lost = [pair.patched for pair in both if pair.recovery > 0]
    yield (
        f"- Against `{stock.kernel}`, in {len(both)} cells: the verdict is better in {better}, "
        f"worse in {len(worse)}{_where(worse)}; what recovered does not in {len(lost)}"
        f"{_where(lost)}."
    )


def _where(results: Iterable[CellResult]) -> str:
    """In which faults, and in how many cells of which backings."""
    places: dict[str, Counter[str]] = {}
    for each in results:
        places.setdefault(each.scenario.fault, Counter())[each.scenario.backing] += 1
    if not places:
        return ""
    told = (
        f"`{fault}` on " + ", ".join(f"{backing} {count}" for backing, count in found.items())
        for fault, found in places.items()
    )
    return f" ({'; '.join(told)})"


# --- what cannot be -------------------------------------------------------------------------------


def _impossible(matrix: Matrix) -> str:
    rows = ["| backing | fault | access | condition | why not |", "|---|---|---|---|---|"]
    for each in matrix.impossible:
        parts = (each.backings, each.faults, each.accesses, each.conditions)
        words = (", ".join(sorted(part)) or "any" for part in parts)
        rows.append(f"| {' | '.join(words)} | {each.reason} |")
    for thing in matrix.absent:
        place = [f"no `{thing.name}`" if kind == thing.kind else "" for kind in KINDS]
        rows.append(f"| {' | '.join(place)} | | {thing.reason} |")
    return "\n".join([*rows, ""])
