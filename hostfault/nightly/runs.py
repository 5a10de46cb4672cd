"""Starts pytest, and ends it when its time is over."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.nightly.plan import is_local
from hostfault.nightly.reading import REPORT_LOG, TESTS
from hostfault.nightly.sets import Set
from hostfault.nightly.store import replace_text
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.process import run as run_program
from hostfault.plumbing.process import spawn, tail
from hostfault.plumbing.project import PROJECT

GRACE = 40.0  # seconds that pytest has for its tear-down when it is stopped
COLLECTING = 120.0  # seconds
_NODE = re.compile(r"^(?P<id>\S[^\n]*?\.py::.+)$", re.MULTILINE)


@dataclass(frozen=True)
class PytestPrograms:
    """How pytest is started; the tests of this package have a suite of their own."""

    pytest: tuple[str, ...] = (
        *(sys.executable, "-P", "-m", "pytest"),
        *("-c", str(PROJECT / "pyproject.toml"), "--rootdir", str(PROJECT)),
    )
    root: Path = PROJECT


@dataclass(frozen=True)
class PytestEnd:
    """How a run of pytest ended."""

    code: int | None  # negative for a signal; None: its time was over
    words: str  # the end of what it printed


def collect(programs: PytestPrograms, wanted: Set, options: Sequence[str]) -> list[str]:
    """The node ids of a set's tests. Raises :class:`hostfault.plumbing.errors.SetupError`."""
    places = [str(programs.root / place) for place in wanted.places]
    select = ["-k", wanted.select] if wanted.select else []
    options = [*wanted.options, *options]
    argv = [*programs.pytest, *places, *select, *options, "--collect-only", "-q"]
    said = run_program(
        argv, what="collecting the tests", timeout=COLLECTING, env=_environment(), cwd=programs.root
    )
    found = _NODE.findall(said)
    if not found:
        raise SetupError(f"there is no such test: {' '.join(argv)}; pytest said\n{said[-1000:]}")
    return found


def run(
    programs: PytestPrograms,
    kernel: str,
    cases: Sequence[str],
    folder: Path,
    patience: float,
    options: Sequence[str] = (),
) -> PytestEnd:
    """Run these tests on a kernel; ``folder`` is new and gets all that is left of it.

    ``patience`` is in seconds; when it is over pytest is stopped as by Ctrl-C.
    """
    folder.mkdir(parents=True)
    log = folder / "pytest.log"
    deadline = Deadline(patience, "pytest to end")
    argv = [
        *programs.pytest,
        *(str(programs.root / case) for case in cases),
        *where(kernel),
        # Workers of pytest-xdist share the directory.
        *("--artifacts", str(folder / TESTS), "--artifacts-overwrite"),
        *("--report-log", str(folder / REPORT_LOG)),
        *options,
    ]
    # Killed with us, pytest unwinds as by Ctrl-C: its machines and their files go with it.
    with spawn(argv, log=log, env=_environment(), grace=GRACE, death_signal="TERM") as child:
        try:
            code: int | None = child.wait(deadline.left())
        except subprocess.TimeoutExpired:
            code = None
    return PytestEnd(code, tail(log, 2000))


def where(kernel: str) -> list[str]:
    """The options that put a kernel under test."""
    if is_local(kernel):
        return ["--host", "local"]
    return ["--host", "emulated", "--host-kernel", kernel]


def note(folder: Path, label: str, cases: Sequence[str]) -> None:
    """Write beside a run what it is, before it begins: its starter may not live to do it later."""
    text = json.dumps({"kernel": label, "cases": list(cases)}, indent=1)
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_text(folder.with_name(f"{folder.name}.json"), text + "\n")


def _environment() -> Mapping[str, str]:
    """Ours, without what would change which tests run and how."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
