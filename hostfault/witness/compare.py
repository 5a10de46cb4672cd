"""The witness's verdicts beside hostfault's own: what corresponds, what differs, the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostfault.case.model import Scenario, VerdictKind
from hostfault.witness.tap import SelftestResult

AGREE, DIFFER, TROUBLE = 0, 1, 2  # exit codes

# The two say the same in other words. "other" has no counterpart, and so differs from all.
_SAME = {
    "ok": VerdictKind.OK,
    "exit": VerdictKind.VM_EXIT,
    "spin": VerdictKind.SPIN,
    "stall": VerdictKind.STALL,
    "stale": VerdictKind.STALE,
}
_FAULTS = {"present": "none", "zero": "zero", "middle": "middle"}
_MODES = {"apf-user": True, "no-apf": False}


@dataclass(frozen=True)
class Ours:
    """What hostfault said of a case, or why it could say nothing."""

    verdict: VerdictKind | None
    trouble: str = ""


@dataclass(frozen=True)
class WitnessRow:
    """One test of the witness on one kernel, and the dax case that is the same, if there is one."""

    kernel: str
    name: str
    witness: SelftestResult
    ours: Ours | None  # None: no dax case corresponds

    @property
    def standing(self) -> str:
        """What the row amounts to: "agree", "DIFFER", "TROUBLE", or "" if only one looked."""
        if self.witness.skipped or (self.ours and self.ours.verdict is None):
            return "TROUBLE"
        if self.ours:
            return "agree" if _SAME.get(self.witness.verdict) is self.ours.verdict else "DIFFER"
        return "TROUBLE" if self.witness.is_control and not self.witness.passed else ""


@dataclass(frozen=True)
class Report:
    """All that is known of one kernel."""

    kernel: str
    rows: tuple[WitnessRow, ...]
    trouble: tuple[str, ...] = ()  # what kept the witness from speaking, or its host was broken


def scenario_for(name: str) -> Scenario | None:
    """The dax case that is the same as a test of the witness; None if none is."""
    backing, mode, access = name.split(".")
    if backing not in _FAULTS or mode not in _MODES:
        return None
    return Scenario("virtiofs-dax", _FAULTS[backing], access, _MODES[mode])


def rows_of(
    kernel: str, results: Mapping[str, SelftestResult], ours: Mapping[Scenario, Ours]
) -> tuple[WitnessRow, ...]:
    """A row for each of the witness's results, in its order."""
    return tuple(
        WitnessRow(kernel, name, result, ours.get(scenario) if scenario else None)
        for name, result in results.items()
        for scenario in [scenario_for(name)]
    )


def exit_code(reports: Sequence[Report]) -> int:
    """A difference is a finding and comes first; what kept us from comparing is trouble."""
    standings = {row.standing for report in reports for row in report.rows}
    if "DIFFER" in standings:
        return DIFFER
    broken = any(report.trouble for report in reports) or not standings
    return TROUBLE if broken or "TROUBLE" in standings else AGREE


def table(reports: Sequence[Report]) -> str:
    """The table, with a summary line for each kernel; names are aligned for a terminal."""
    heading = ("kernel", "test", "selftest", "failed", "hostfault", "")
    lines: list[tuple[str, ...]] = [heading]
    lines += [_cells(row) for report in reports for row in report.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *(_summary(report) for report in reports)])


def _cells(row: WitnessRow) -> tuple[str, ...]:
    ours = "-"
    if row.ours:
        ours = row.ours.verdict.value if row.ours.verdict else "error"
    return (
        row.kernel,
        row.name,
        "skipped" if row.witness.skipped else row.witness.verdict,
        row.witness.fields.get("failed", "-"),
        ours,
        row.standing,
    )


def _summary(report: Report) -> str:
    counts = {
        word: sum(row.standing == word for row in report.rows)
        for word in ("agree", "DIFFER", "TROUBLE", "")
    }
    said = f"{counts['agree']} agree, {counts['DIFFER']} differ, {counts['']} seen by one alone"
    if counts["TROUBLE"]:
        said += f", {counts['TROUBLE']} in trouble"
    troubles = [*report.trouble, *(_why(row) for row in report.rows if row.standing == "TROUBLE")]
    return "\n".join([f"{report.kernel}: {said}", *(f"    {each}" for each in troubles)])


def _why(row: WitnessRow) -> str:
    if row.witness.skipped:
        return f"{row.name}: skipped: {row.witness.skipped}"
    if row.ours and row.ours.trouble:
        return f"{row.name}: {row.ours.trouble}"
    return f"{row.name}: a control ended in {row.witness.verdict}: do not believe the witness"
