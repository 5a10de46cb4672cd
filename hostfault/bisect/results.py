"""Reads what a run of pytest left: its JUnit file, and the verdict.json of each test.

The outcome of a test is pytest's, the verdict is verdict.json's; an exit code says neither.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hostfault.bisect.decide import TestOutcome, TestResult
from hostfault.case.model import VerdictKind

# A test that failed and then met trouble has two marks in the file; the first of these counts.
_MARKS = (
    ("failure", TestOutcome.FAILED),
    ("error", TestOutcome.ERROR),
    ("skipped", TestOutcome.SKIPPED),
)
# What hostfault/plugin/keeper.py says of trouble, in what pytest says of an error.
_TROUBLE = re.compile(r"harness trouble \(\w+\): (?P<what>[^;\n]*)")


def read(junit: Path) -> tuple[TestResult, ...]:
    """The tests of a run. Raises ValueError for a file that is missing or is not as it must be."""
    try:
        cases = ElementTree.parse(junit).iter("testcase")  # noqa: S314 (our own pytest's file)
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{junit}: {error}") from error
    tests: dict[str, TestResult] = {}
    for case in cases:
        test = _test(case)
        known = tests.get(test.name)
        # pytest writes an error of the tear-down as a testcase of its own.
        if known is None or _weight(test) < _weight(known):
            tests[test.name] = test
    return tuple(tests.values())


def _test(case: ElementTree.Element) -> TestResult:
    name = case.get("name", "")
    outcome, text = TestOutcome.PASSED, ""
    for tag, meaning in _MARKS:
        mark = case.find(tag)
        if mark is not None:
            outcome, text = meaning, _what(mark.get("message") or mark.text or "")
            break
    folder = next(
        (each.get("value") for each in case.iter("property") if each.get("name") == "artifacts"),
        None,
    )
    if folder is None:
        return TestResult(name, outcome, text=text)
    verdict = _verdict(Path(folder) / "verdict.json")
    return TestResult(
        name=name,
        outcome=outcome,
        verdict=VerdictKind(verdict["verdict"]),
        text=str(verdict["summary"]),
        kernel=identity(verdict["host_kernel"]),
    )


def identity(kernel: Any) -> str:
    """Which kernel ran: the files, and what the module said that it was built from.

    ``kernel`` is a :class:`hostfault.case.model.Kernel` as JSON data.
    """
    return f"{kernel['image']} {kernel['modules']} {kernel['build_id']}" if kernel else "local"


def _what(message: str) -> str:
    """The trouble in a message of pytest's, without where its logs are."""
    found = _TROUBLE.search(message)
    return found["what"] if found else message


def _verdict(path: Path) -> Any:
    try:
        verdict = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(verdict, dict) or not {"verdict", "summary", "host_kernel"} <= set(verdict):
        raise ValueError(f"{path}: not a verdict")
    return verdict


def _weight(test: TestResult) -> int:
    order = [outcome for _, outcome in _MARKS]
    return order.index(test.outcome) if test.outcome in order else len(order)
