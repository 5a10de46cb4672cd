"""What was measured: one answer for each cell and kernel, kept as JSON. Pure but for load and save.

A cell has two answers: what the task or the VMM was told (the verdict), and what followed when the
fault was undone (the recovery). They are never mixed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.access import ACCESSES
from hostfault.case.model import Scenario, VerdictKind
from hostfault.fault import FAULTS
from hostfault.plugin.cases import case_id

ERROR = "error"  # in place of a verdict: harness trouble
_WAS, _STORED = 1, 2  # any two bytes


@dataclass(frozen=True)
class CellResult:
    """What one cell came to on one kernel."""

    scenario: Scenario
    verdict: str  # a VerdictKind, or ERROR
    recovery: str  # a RecoveryKind; "" where the access had ended, or nothing is known of it
    summary: str  # the verdict's, or the trouble
    seconds: float  # of the case, its share of a boot included

    @property
    def answer(self) -> str:
        """Both answers, in few words."""
        return f"{self.verdict}; {self.recovery}" if self.recovery else self.verdict


@dataclass(frozen=True)
class Run:
    """What was measured on one kernel."""

    kernel: str  # as --host-kernel takes it; with @POLICY: --vmm-policy, too
    release: str  # as the host said
    kvm_build_id: str  # of the module that was loaded there
    dates: tuple[str, ...]  # of the measurements, ISO 8601
    results: Mapping[str, CellResult]  # by the cell's id

    def merged(self, other: Run) -> Run:
        """With what was measured later; of a cell that both have, the later answer counts."""
        return dataclasses.replace(
            other,
            dates=tuple(sorted({*self.dates, *other.dates})),
            results={**self.results, **other.results},
        )


def has_page(scenario: Scenario) -> bool:
    """Whether there is a page for the access, so that ``ok`` is right and nothing else."""
    fault, access = FAULTS[scenario.fault], ACCESSES[scenario.access]
    return fault.expected(access, _WAS, _STORED) is not None


def is_right(result: CellResult) -> bool:
    """Whether the verdict is one that a test passes for, where an exit of the VM will do."""
    if has_page(result.scenario):
        return result.verdict == VerdictKind.OK
    return result.verdict in (VerdictKind.OK, VerdictKind.TASK_ERROR, VerdictKind.VM_EXIT)


def load(path: Path) -> dict[str, Run]:
    """What was measured, by kernel; nothing where there is no file. Raises ValueError, KeyError."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    return {name: _run(name, entry) for name, entry in data["kernels"].items()}


def save(runs: Mapping[str, Run], path: Path) -> None:
    """Write it, with one line for each cell, so that a change of it can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kernels = ",\n".join(_kernel_text(run) for run in runs.values())
    path.write_text(f'{{"kernels": {{\n{kernels}\n}}}}\n')


def _kernel_text(run: Run) -> str:
    facts = {"release": run.release, "kvm_build_id": run.kvm_build_id, "dates": run.dates}
    head = json.dumps(facts)[1:-1]
    cells = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(_entry(result))}"
        for name, result in run.results.items()
    )
    return f'{json.dumps(run.kernel)}: {{{head}, "cells": {{\n{cells}\n}}}}'


def _entry(result: CellResult) -> dict[str, Any]:
    entry = dataclasses.asdict(result)
    return {**entry.pop("scenario"), **entry}


def _run(kernel: str, entry: Mapping[str, Any]) -> Run:
    results = (_result(each) for each in entry["cells"].values())
    return Run(
        kernel,
        entry["release"],
        entry["kvm_build_id"],
        tuple(entry["dates"]),
        {case_id(result.scenario): result for result in results},
    )


def _result(entry: Mapping[str, Any]) -> CellResult:
    parts = [field.name for field in dataclasses.fields(Scenario)]
    scenario = Scenario(**{part: entry[part] for part in parts if part in entry})
    rest = {name: value for name, value in entry.items() if name not in parts}
    return CellResult(scenario, **rest)


def cells_of(runs: Sequence[Run]) -> list[Scenario]:
    """Every cell that some run has, each once, in the order in which they were measured."""
    found = {name: result.scenario for run in runs for name, result in run.results.items()}
    return list(found.values())
