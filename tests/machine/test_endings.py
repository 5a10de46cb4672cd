"""The deaths, for real: a host, a QEMU and a guest that end while a case is being observed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hostfault.case.model import Scenario, Verdict, VerdictKind
from hostfault.case.settings import Settings
from hostfault.case.verdict import final_verdict
from hostfault.guest import boot as guest_machine
from hostfault.host.emulated import EmulatedLife
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.plumbing.progress import heard_by
from hostfault.run.arm import arm
from hostfault.run.lab import Lab
from hostfault.run.observe import observe

SCENARIO = Scenario("virtiofs-dax", "none", "load", async_pf=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with heard_by(print), Lab(Settings(host="emulated")) as lab:
        yield lab


def verdict_after(lab: Lab, folder: Path, wreck: Callable[[Testbed], None]) -> Verdict:
    """Arm a case, then wreck something where the fault would be injected."""
    with lab.testbed(SCENARIO, folder) as testbed:
        armed = arm(testbed, SCENARIO)
        return final_verdict(observe(testbed, armed, lambda _: wreck(testbed)))


def test_a_host_kernel_that_panics_is_a_host_death(lab: Lab, tmp_path: Path) -> None:
    def wreck(testbed: Testbed) -> None:
        testbed.agent.write("/proc/sysrq-trigger", "c")

    verdict = verdict_after(lab, tmp_path, wreck)
    assert verdict.kind is VerdictKind.HOST_DEATH
    assert "Kernel panic" in (tmp_path / "host-serial.log").read_text()


def test_a_guest_kernel_that_panics_is_a_guest_death(lab: Lab, tmp_path: Path) -> None:
    def wreck(testbed: Testbed) -> None:
        with suppress(ConnectionLostError):  # the guest dies before it can answer
            testbed.guest.run("echo c >/proc/sysrq-trigger", Deadline(2.0, "the guest to panic"))

    verdict = verdict_after(lab, tmp_path, wreck)
    assert verdict.kind is VerdictKind.GUEST_DEATH
    assert any("GUEST_PANICKED" in line for line in verdict.evidence)


def test_a_qemu_that_crashes_is_a_vmm_death(lab: Lab, tmp_path: Path) -> None:
    def wreck(testbed: Testbed) -> None:
        testbed.agent.kill(guest_machine.NAME, signal.SIGSEGV)

    assert verdict_after(lab, tmp_path, wreck).kind is VerdictKind.VMM_DEATH


def test_a_qemu_that_somebody_killed_is_trouble_and_no_verdict(lab: Lab, tmp_path: Path) -> None:
    def wreck(testbed: Testbed) -> None:
        testbed.agent.kill(guest_machine.NAME)

    with pytest.raises(HostfaultError, match="SIGKILL, which says nothing of KVM"):
        verdict_after(lab, tmp_path, wreck)


def test_a_back_end_that_ends_is_trouble_and_no_verdict(lab: Lab, tmp_path: Path) -> None:
    def wreck(testbed: Testbed) -> None:
        testbed.agent.kill("daxfs", signal.SIGSEGV)

    with pytest.raises(HostfaultError, match=r"the back-end ended \(SIGSEGV\)"):
        verdict_after(lab, tmp_path, wreck)


@pytest.mark.nightly
def test_row_12_an_outer_qemu_that_is_stopped_is_trouble_and_no_verdict(
    lab: Lab, tmp_path: Path
) -> None:
    def wreck(testbed: Testbed) -> None:
        assert isinstance(testbed.host, EmulatedLife)
        os.kill(testbed.host.machine._child.pid, signal.SIGSTOP)

    with pytest.raises(HostfaultError, match="did not get to run: it was stopped"):
        verdict_after(lab, tmp_path, wreck)
