"""Reads what one run of pytest left: pytest-reportlog's lines, and the folder of each test.

A run that was killed leaves a log that ends anywhere; what it had reported counts all the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hostfault.nightly.results import Result, Status

REPORT_LOG = "report.jsonl"  # the names within the folder of a run
TESTS = "tests"
_TROUBLE = re.compile(r"harness trouble \((?P<kind>\w+)\): (?P<what>[^\n]*)")
_TIMEOUT = re.compile(r"Timeout \(?>|Timeout after ")  # pytest-timeout's words
_WAITED = ("DeadlineError",)
LIMIT = 2000  # characters of a message that are kept


def read_run(run: Path, night: Path, kernel: str, attempts: Mapping[str, int]) -> list[Result]:
    """The tests that a run has reported to their end, in the order of ending.

    ``attempts`` has how often each case ran on that kernel before, in this night.
    """
    folders = _Folders(run / TESTS)
    found: list[Result] = []
    reports: dict[str, list[Mapping[str, Any]]] = {}
    for report in _reports(run / REPORT_LOG):
        case = str(report.get("nodeid"))
        reports.setdefault(case, []).append(report)
        if report.get("when") == "teardown":
            phases = reports.pop(case)
            attempt = attempts.get(case, 0) + 1
            found.append(_result(phases, kernel, case, attempt, folders, night))
    return found


def seconds_of(run: Path, note: Path) -> float:
    """How long a run went on, for one whose starter did not live to say so.

    From the note beside it, which is written just before, to its last word.
    """
    try:
        return max(0.0, (run / REPORT_LOG).stat().st_mtime - note.stat().st_mtime)
    except OSError:
        return 0.0


def _reports(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return  # killed before its first word
    for line in lines:
        try:
            data = json.loads(line)
        except ValueError:
            continue  # the line that it was killed in
        if isinstance(data, dict) and data.get("$report_type") == "TestReport":
            yield data


class _Folders:
    """Finds the folder of a test among those of a run."""

    def __init__(self, tests: Path) -> None:
        self._by_case: dict[str, Path] = {}
        self._by_name: dict[str, Path] = {}
        for folder in sorted(tests.iterdir()) if tests.is_dir() else ():
            if not folder.is_dir():
                continue
            self._by_name[folder.name] = folder
            case = read_object(folder / "verdict.json").get("test")
            if case:
                self._by_case[str(case)] = folder

    def find(self, case: str) -> Path | None:
        """The folder, None if the test came to none."""
        item = case.rpartition("::")[2]
        name = re.sub(r"[^\w.]+", "-", item).strip("-")  # as the suite names folders
        return self._by_case.get(case) or self._by_name.get(name)


def read_object(path: Path) -> dict[str, Any]:
    """A file of JSON, empty if it is missing or no object."""
    try:
        data = json.loads(path.read_text(errors="replace"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _result(
    phases: Sequence[Mapping[str, Any]],
    kernel: str,
    case: str,
    attempt: int,
    folders: _Folders,
    night: Path,
) -> Result:
    folder = folders.find(case)
    record = read_object(folder / "verdict.json") if folder else {}
    outcome, reason, text = _outcome(phases, has_verdict=bool(record.get("verdict")))
    summary = str(record.get("summary") or "")
    return Result(
        kernel=kernel,
        case=case,
        outcome=outcome,
        attempt=attempt,
        verdict=str(record.get("verdict") or ""),
        summary=text if outcome.is_trouble or not summary else summary,
        reason=reason,
        began=min((_number(each.get("start")) for each in phases), default=0.0),
        seconds=round(sum(_number(each.get("duration")) for each in phases), 3),
        folder=str(folder.relative_to(night)) if folder else "",
        record=record,
    )


def _outcome(phases: Sequence[Mapping[str, Any]], has_verdict: bool) -> tuple[Status, str, str]:
    """The outcome of a test, the kind of its trouble, and what was said of it in a line or two."""
    for report in phases:
        if report.get("outcome") == "failed":
            return _failed(report, has_verdict)
    for report in phases:
        if report.get("outcome") == "skipped":
            text = _message(report)
            if "wasxfail" in report and has_verdict:
                return Status.KNOWN, "", text
            return Status.SKIPPED, text.partition(":")[0], text
    return Status.PASSED, "", ""


def _failed(report: Mapping[str, Any], has_verdict: bool) -> tuple[Status, str, str]:
    text = _message(report)
    trouble = _TROUBLE.search(text)
    if trouble:
        kind = trouble["kind"]
        waited = kind in _WAITED
        return (Status.TIMEOUT if waited else Status.HARNESS), kind, trouble["what"][:LIMIT]
    if _TIMEOUT.search(text):
        return Status.TIMEOUT, "pytest-timeout", text
    if text.startswith("--require "):
        return Status.HARNESS, "MissingCapabilityError", text
    if has_verdict and report.get("when") == "call":
        if text.startswith("[XPASS(strict)]"):  # better than the list of known issues says
            return Status.PASSED, "passes in spite of a known issue", text
        if _is_plain(report) or text.startswith(("assert", "AssertionError")):
            return Status.FAILED, "", text
    return Status.BROKEN, re.split(r"\W", text, maxsplit=1)[0] or "exception", text


def _is_plain(report: Mapping[str, Any]) -> bool:
    """Whether a failure is words of the suite's own (pytest.fail), not any exception."""
    told = report.get("longrepr")
    if isinstance(told, dict):
        crash = told.get("reprcrash")
        return isinstance(crash, dict) and str(crash.get("message")).startswith("Failed: ")
    return isinstance(told, str)


def _message(report: Mapping[str, Any]) -> str:
    """What pytest says of a failure or a skip."""
    told = report.get("longrepr")
    if isinstance(told, list) and told:  # a skip: file, line, reason
        text = str(told[-1]).removeprefix("Skipped: ")
    elif isinstance(told, dict):
        crash = told.get("reprcrash")
        text = str(crash.get("message")) if isinstance(crash, dict) else json.dumps(told)
    else:
        text = str(told or "")
    return text.strip().removeprefix("Failed: ")[:LIMIT]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
