"""Measure cells on a kernel: start pytest on them, and read what it leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.case import folder as files
from hostfault.case.model import Scenario
from hostfault.matrix.result import ERROR, CellResult, Run
from hostfault.plugin.cases import case_id
from hostfault.plumbing.deadline import Deadline, wall_clock
from hostfault.plumbing.errors import BrokenHarnessError
from hostfault.plumbing.process import spawn, tail
from hostfault.plumbing.project import PROJECT

TESTS = PROJECT / "tests" / "matrix" / "test_cells.py"
SEED = "1"  # the same on each kernel: of what accesses leave to chance
GRACE = 30.0  # seconds that pytest has for its tear-down
_ARTIFACTS = "tests"  # in the folder of a measurement
MISUSED = (3, 4, 5)  # pytest's exit codes for a broken or wrongly called run


@dataclass(frozen=True)
class Pytest:
    """How pytest is started; the tests of this package have another one."""

    argv: tuple[str, ...] = (
        *(sys.executable, "-P", "-m", "pytest", "-c", str(PROJECT / "pyproject.toml")),
        *("--rootdir", str(PROJECT), "-p", "no:shard"),
    )
    options: tuple[str, ...] = ()  # that a person added


def measure(
    kernel: str,
    name: str,
    cells: Sequence[Scenario],
    folder: Path,
    *,
    patience: float,
    pytest: Pytest | None = None,
) -> Run:
    """Run cells of the set ``name`` on a kernel; ``folder`` gets everything.

    A kernel may be ``KERNEL@POLICY``, as for ``--host-kernel`` and ``--vmm-policy``.

    After ``patience`` seconds pytest is ended, and what it has done by then is what is returned.
    Raises :class:`BrokenHarnessError` if it could not begin.
    """
    program = pytest or Pytest()
    artifacts, log = folder / _ARTIFACTS, folder / "pytest.log"
    shutil.rmtree(artifacts, ignore_errors=True)  # what an earlier run has left is not of this one
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        *program.argv,
        *(f"{TESTS}::test_cell[{case_id(cell)}]" for cell in cells),
        *("--set", name, "--host", "emulated", "--no-known-issues", *options_of(kernel)),
        *("--artifacts", str(artifacts), "--seed", SEED),
        *program.options,
    ]
    deadline = Deadline(patience, "the cells to be measured")
    with spawn(argv, log=log, grace=GRACE) as child:
        try:
            code: int | None = child.wait(deadline.left())
        except subprocess.TimeoutExpired:
            code = None
    if code in MISUSED:
        raise BrokenHarnessError(f"pytest ended with code {code}; the end of {log}:\n{tail(log)}")
    return read(kernel, cells, folder)


def options_of(kernel: str) -> tuple[str, ...]:
    """Pytest's options for a kernel, with the VMM's policy where it names one."""
    name, _, policy = kernel.partition("@")
    return ("--host-kernel", name, *(("--vmm-policy", policy) if policy else ()))


def read(kernel: str, cells: Sequence[Scenario], folder: Path) -> Run:
    """What :func:`measure` has left of these cells; those that it did not come to are missing."""
    artifacts = folder / _ARTIFACTS
    results: dict[str, CellResult] = {}
    release = build_id = ""
    for cell in cells:
        left = artifacts / f"test_cell-{case_id(cell)}"
        if (said := _json(left / files.VERDICT)) is not None:
            results[case_id(cell)] = _result(cell, said)
            release, build_id = said["host_release"], said["kvm_build_id"]
        elif (left / files.ERROR).exists():
            trouble = (left / files.ERROR).read_text().splitlines()[0]
            results[case_id(cell)] = CellResult(cell, ERROR, "", trouble, 0.0)
    day = time.strftime("%Y-%m-%d", time.gmtime(wall_clock()))
    return Run(kernel, release, build_id, (day,), results)


def _result(cell: Scenario, said: Mapping[str, Any]) -> CellResult:
    """The answers in a verdict.json."""
    recovery = said["recovery"]["kind"] if said["recovery"] else ""
    seconds = round(sum(said["seconds"].values()), 2)
    return CellResult(cell, said["verdict"], recovery, said["summary"], seconds)


def _json(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    data: Mapping[str, Any] = json.loads(path.read_text())
    return data
