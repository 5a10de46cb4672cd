"""The deaths, for real: a host, a QEMU and a guest that end while a case is being observed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hostfault.case.model import Access, Fault, Scenario, Verdict, VerdictKind
from hostfault.case.verdict import final_verdict
from hostfault.guest import boot as guest_machine
from hostfault.host.testbed import Place
from hostfault.plugin.options import Settings
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError
from hostfault.run.lab import Lab
from hostfault.run.observe import arm, observe

SCENARIO = Scenario("virtiofs-dax", Fault.NONE, Access.LOAD, async_pf=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Settings(host="emulated"), print) as lab:
        yield lab


def verdict_after(lab: Lab, folder: Path, wreck: Callable[[Place], None]) -> Verdict:
    """Arm a case, then wreck something where the fault would be injected."""
    with lab.place(SCENARIO, folder) as place:
        armed = arm(place, SCENARIO)
        return final_verdict(observe(place, SCENARIO, armed, lambda place, _: wreck(place)))


def test_a_host_kernel_that_panics_is_a_host_death(lab: Lab, tmp_path: Path) -> None:
    def wreck(place: Place) -> None:
        place.agent.write("/proc/sysrq-trigger", "c")

    verdict = verdict_after(lab, tmp_path, wreck)
    assert verdict.kind is VerdictKind.HOST_DEATH
    assert "Kernel panic" in (tmp_path / "host-serial.log").read_text()


def test_a_guest_kernel_that_panics_is_a_guest_death(lab: Lab, tmp_path: Path) -> None:
    def wreck(place: Place) -> None:
        with suppress(ConnectionLostError):  # the guest dies before it can answer
            place.guest.run("echo c >/proc/sysrq-trigger", Deadline(2.0, "the guest to panic"))

    verdict = verdict_after(lab, tmp_path, wreck)
    assert verdict.kind is VerdictKind.GUEST_DEATH
    assert any("GUEST_PANICKED" in line for line in verdict.evidence)


def test_a_qemu_that_is_killed_is_a_vmm_death(lab: Lab, tmp_path: Path) -> None:
    verdict = verdict_after(lab, tmp_path, _kill_qemu)
    assert verdict.kind is VerdictKind.VMM_DEATH


def _kill_qemu(place: Place) -> None:
    place.agent.kill(guest_machine.NAME)
