"""What is shown at the end of a session: the table of verdicts, and what was not finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hostfault.case.record import LabFacts, Record
from hostfault.plumbing.text import harmless
from hostfault.report.table import Row, Tone, header, render

COLOURS: dict[Tone, dict[str, bool]] = {
    "good": {"green": True},
    "known": {"yellow": True},
    "bad": {"red": True},
    "plain": {},
}


def row_of(report: pytest.TestReport, record: Record) -> Row:
    """The row of a test that came to a verdict, from the report of its call."""
    verdict = record.verdict
    tone: Tone = "good" if report.passed else "bad"
    remark = ""
    if record.issue is not None and record.settings.known_issues:
        if hasattr(report, "wasxfail") and report.skipped:
            tone, remark = "known", f"known issue: {record.issue.id}"
        elif report.failed and record.is_accepted:
            remark = f"passes in spite of known issue: {record.issue.id}"
    undone = record.observation.recovery
    recovery = f"when undone: {undone.kind.value}" if undone else ""
    remarks = "; ".join(filter(None, (recovery, remark)))
    summary = harmless(verdict.summary)
    return Row(record.scenario, verdict.kind.value.upper(), summary, tone, remarks)


def first_line(report: pytest.TestReport) -> str:
    """The first line of what a test that erred or was skipped says."""
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        text = report.longrepr[2]
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else report.longreprtext
    return text.strip().removeprefix("Failed: ").partition("\n")[0]


def repeat_first_line_only(report: pytest.TestReport, error: BaseException) -> None:
    """Cut the message that pytest repeats at its end to the first line, if it is one of ours.

    Where CI or BUILD_NUMBER is set pytest repeats messages whole, and ours end with logs.
    """
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None and isinstance(error, pytest.fail.Exception) and not error.pytrace:
        crash.message = crash.message.partition("\n")[0]


def show_table(
    reporter: pytest.TerminalReporter,
    facts: LabFacts | None,
    rows: Sequence[Row],
    artifacts: Path | None,
) -> None:
    """Write the table of verdicts."""
    reporter.section("verdicts")
    if facts is not None:
        reporter.write_line(header(facts))
    for line in render(rows, reporter.config.get_terminal_writer().fullwidth):
        reporter.write_line(line.text, **COLOURS[line.tone])
    if artifacts is not None:
        reporter.write_line(f"artifacts: {artifacts}")


def show_unfinished(
    reporter: pytest.TerminalReporter, current: str, waiting_for: str, left: Sequence[str]
) -> None:
    """Write which test was interrupted, at what, and which were not begun."""
    reporter.section("not finished")
    if current:
        at = f"   (while: {waiting_for})" if waiting_for else ""
        reporter.write_line(f"interrupted: {current}{at}", yellow=True)
    for test in left:
        reporter.write_line(f"not begun:   {test}")
