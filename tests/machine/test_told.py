"""The task is told, for real: KVM exits, the VMM's policy makes that a machine check, SIGBUS."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hostfault.case.model import Scenario
from hostfault.case.record import Record
from hostfault.case.settings import Settings
from hostfault.kernel.catalog import newest
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "zero", "store", async_pf=True)
BUS_MCEERR_AR = 4  # sigaction(2)
READ, WRITE = 1, 2  # KVM_MEMORY_EXIT_FLAG_* of the series


EVERY = [
    Scenario("virtiofs-dax", fault, access, async_pf)
    for async_pf in (True, False)
    for fault in ("zero", "middle")
    for access in ("load", "store")
]


@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(600)  # KVM is compiled, and the first time its base is made
def test_a_task_gets_a_signal_for_a_truncated_page_and_the_guest_lives(tmp_path: Path) -> None:
    with told_lab() as lab:
        is_told(lab.run("told", SCENARIO, tmp_path))


@pytest.mark.nightly
@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(900)
def test_every_truncated_case_is_told(tmp_path: Path) -> None:
    with told_lab() as lab:
        for number, scenario in enumerate(EVERY):
            is_told(lab.run("told", scenario, tmp_path / str(number)))


def told_lab() -> Lab:
    kernel = f"{newest()}+tell-user-space"
    return Lab(Settings(host="emulated", host_kernel=kernel, vmm_policy="mce"))


def is_told(case: Record) -> None:
    """SIGBUS at the instruction, for the address, and the guest answers afterwards."""
    case.must_be_signal(signal.SIGBUS)
    outcome, probe = case.observation.probe.outcome, case.observation.probe
    assert outcome is not None
    assert (outcome.code, outcome.address, outcome.rip) == (
        BUS_MCEERR_AR,
        probe.address,
        probe.rip,
    )
    assert case.observation.guest_answers is True
    (deed,) = [deed for deed in case.observation.vmm_deeds if deed.gpa]
    kind = WRITE if case.observation.terms.writes else READ
    assert (deed.did, deed.flags) == ("injected", kind)
