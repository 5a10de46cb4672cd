"""What the process that pytest-xdist starts its workers from knows of their cases.

The records are in the workers; each report brings the fields of its verdict as properties.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from hostfault.case.model import Scenario
from hostfault.plumbing.text import harmless
from hostfault.report.table import Row, Tone


def row_of_worker(report: pytest.TestReport) -> Row | None:
    """The row of a case that a worker ran; None for a report of anything else."""
    told = dict(report.user_properties)
    if report.when != "call" or "verdict" not in told or "fault" not in told:
        return None
    scenario = Scenario(
        backing=str(told["backing"]),
        fault=str(told["fault"]),
        access=str(told["access"]),
        async_pf=told["async_pf"] == "True",
    )
    tone: Tone = "good" if report.passed else "bad"
    if hasattr(report, "wasxfail") and report.skipped:
        tone = "known"
    remarks = [f"on {told['options.host']}"]
    if undone := told.get("recovery.kind"):
        remarks.append(f"when undone: {undone}")
    if tone == "known":
        remarks.append(f"known issue: {told['known_issue']}")
    word, summary = str(told["verdict"]).upper(), harmless(str(told["summary"]))
    return Row(scenario, word, summary, tone, "; ".join(remarks))


def number_of(config: pytest.Config) -> int | None:
    """Which worker of pytest-xdist this process is, from 0; None for one that is none."""
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    return None if worker is None else int(worker["workerid"].removeprefix("gw"))


def workers_of(config: pytest.Config) -> int:
    """How many workers were asked for; 1 without pytest-xdist."""
    return config.getoption("numprocesses", None) or 1
