"""The fixes, for real: each turns the spin into an exit. ci/fixes does so for every case."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.bisect.fixes import FIXES
from hostfault.case.model import Scenario, VerdictKind
from hostfault.case.settings import Settings
from hostfault.kernel.catalog import newest
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)


@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(600)  # KVM is compiled, and the first time its base is made
@pytest.mark.parametrize("fix", FIXES)
def test_a_fix_turns_the_spin_into_an_exit(fix: str, tmp_path: Path) -> None:
    with Lab(Settings(host="emulated", host_kernel=f"{newest()}+{fix}")) as lab:
        verdict = lab.run(fix, SCENARIO, tmp_path).verdict
    assert verdict.kind is VerdictKind.VM_EXIT, verdict.summary
