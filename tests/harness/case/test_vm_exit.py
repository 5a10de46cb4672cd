"""The VM stops, and what ties that to the access."""

from __future__ import annotations

import dataclasses
import json

from case_stand_ins import (
    GFN,
    RECORDED,
    RIP,
    observed,
    sample,
)

from hostfault.case.model import (
    Event,
    UserspaceExit,
    VerdictKind,
    observation_from_json,
)
from hostfault.case.verdict import judge

EFAULT = (UserspaceExit(reason=17, errno=-14, count=1),)
STOPPED = sample(0.1, (GFN, RIP, 1), run_state="internal-error", exits=EFAULT)
STOP = (Event("STOP", 0.05),)


def test_stop_and_internal_error_are_a_vm_exit() -> None:
    verdict = judge(
        observed(
            sample(-0.1),
            STOPPED,
            events=(Event("STOP", 0.05),),
            qemu_log="error: kvm run failed Bad address\nRAX=1 RIP=00000000004019d6",
        )
    )
    assert verdict is not None
    assert verdict.kind is VerdictKind.VM_EXIT
    assert verdict.summary == "the VM stopped: error: kvm run failed Bad address"
    assert "vCPU registers: rip 0x4019d6, the probe's instruction" in verdict.evidence


def test_row_2_a_vm_that_stopped_for_another_reason_is_no_vm_exit() -> None:
    for exits in ((), (UserspaceExit(17, -12, 1),), (*EFAULT, UserspaceExit(17, -5, 1))):
        stopped = dataclasses.replace(STOPPED, exits=exits)
        assert judge(observed(sample(-0.1), stopped, events=STOP)) is None
    no_fault = sample(0.1, run_state="internal-error", exits=EFAULT)
    assert judge(observed(sample(-0.1), no_fault, events=STOP)) is None
    named = "Convert non guest_memfd backed memory region (0xf8000000 ,+ 0x1000) to shared"
    verdict = judge(observed(sample(-0.1), no_fault, events=STOP, qemu_log=named))
    assert verdict is not None
    assert "QEMU names the frame, gfn 0xf8000" in verdict.evidence


def test_internal_error_without_the_event_proves_nothing() -> None:
    assert judge(observed(sample(-0.1), STOPPED)) is None


def test_a_stop_by_somebody_else_is_no_vm_exit() -> None:
    paused = sample(0.1, run_state="paused")
    assert judge(observed(sample(-0.1), paused, events=(Event("STOP", 0.05),))) is None


def test_a_stop_from_before_the_first_sample_does_not_count() -> None:
    assert judge(observed(sample(-0.1), STOPPED, events=(Event("STOP", -5.0),))) is None


def test_a_failure_of_kvm_at_another_address_proves_nothing_about_the_page() -> None:
    path = next(path for path in RECORDED if path.name.startswith("vm-exit.error-table"))
    exit_of_the_page = observation_from_json(json.loads(path.read_text()))
    gfn = exit_of_the_page.expected_gfn
    assert gfn is not None
    log = "KVM internal error. Suberror: 3\nextra data[0]: 0x{:016x}\n"
    elsewhere = dataclasses.replace(exit_of_the_page, qemu_log=log.format(0xFC003000))
    assert judge(elsewhere) is None
    there = dataclasses.replace(exit_of_the_page, qemu_log=log.format(gfn * 4096 + 8))
    verdict = judge(there)
    assert verdict is not None
    assert verdict.kind is VerdictKind.VM_EXIT
