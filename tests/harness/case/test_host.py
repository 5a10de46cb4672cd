"""A host whose kernel complains or keeps a vCPU, and what ends for other reasons."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from case_stand_ins import (
    quiet,
    recorded,
    spinning,
)

from hostfault.case.model import (
    Ended,
    Observation,
    Outcome,
    VerdictKind,
)
from hostfault.case.verdict import final_verdict
from hostfault.plumbing.errors import DeadlineError, HostfaultError


def test_row_9_a_pass_on_a_host_whose_kernel_complains_is_none() -> None:
    fine = quiet(Outcome("value", 0x88), expected=0x88)
    assert final_verdict(fine).kind is VerdictKind.OK
    warned = dataclasses.replace(fine, host_log="[ 9.1] WARNING: CPU: 1 PID: 7 at mmu.c:1\nx")
    verdict = final_verdict(warned)
    assert verdict.kind is VerdictKind.HOST_BUG
    assert "WARNING: CPU: 1 PID: 7 at mmu.c:1" in verdict.summary


@pytest.mark.parametrize(
    ("host_log", "why"),
    [("", "somebody killed it"), ("Out of memory: Killed process 9 (qemu)", "Out of memory")],
)
def test_row_10_a_qemu_that_was_killed_says_nothing_of_kvm(host_log: str, why: str) -> None:
    killed = spinning(qemu_ended=Ended(None, 9, ""), host_log=host_log)
    with pytest.raises(HostfaultError, match=f"SIGKILL.*{why}"):
        final_verdict(killed)


def test_row_13_a_back_end_that_ended_is_trouble_whatever_else_was_seen() -> None:
    with pytest.raises(HostfaultError, match=r"back-end ended \(SIGSEGV\): daxfs: last words"):
        final_verdict(spinning(back_end_ended=Ended(None, 11, "daxfs: last words")))


STUCK = recorded("vcpu-stuck.mutant-7.3.4.json")


def changed(number: int, **changes: Any) -> Observation:
    """The stuck vCPU with one of its last samples changed."""
    samples = list(STUCK.samples)
    samples[number] = dataclasses.replace(samples[number], **changes)
    return dataclasses.replace(STUCK, samples=tuple(samples))


def test_row_16_a_vcpu_that_stays_in_the_hosts_kernel_has_a_verdict_of_its_own() -> None:
    verdict = final_verdict(STUCK)
    assert verdict.kind is VerdictKind.VCPU_STUCK
    assert "kvm_mutant_wait_for_ever" in verdict.summary
    assert "kvm_vcpu_ioctl" in verdict.evidence[0]


@pytest.mark.parametrize(
    "stack",
    [
        "[<0>] kvm_vcpu_block+0x1/0x2\n[<0>] kvm_vcpu_halt+0x1/0x2\n[<0>] kvm_vcpu_ioctl+0x1/0x2\n",
        "[<0>] xfer_to_guest_mode_handle_work+0x1/0x2\n[<0>] kvm_vcpu_ioctl+0x1/0x2\n",
        "[<0>] futex_wait+0x1/0x2\n[<0>] __x64_sys_futex+0x1/0x2\n",
        "[<0>] elsewhere_in_kvm+0x1/0x2\n[<0>] kvm_vcpu_ioctl+0x1/0x2\n",
    ],
    ids=["halted", "waits for its turn", "outside of KVM_RUN", "moved"],
)
def test_a_vcpu_that_was_elsewhere_a_moment_ago_is_not_stuck(stack: str) -> None:
    with pytest.raises(DeadlineError):
        final_verdict(changed(-20, stacks=(stack,)))


def test_a_vcpu_that_entered_the_guest_is_not_stuck() -> None:
    exits = STUCK.samples[-20].vcpu_stats["exits"] - 1
    with pytest.raises(DeadlineError):
        final_verdict(changed(-20, vcpu_stats={"exits": exits}))
    with pytest.raises(DeadlineError):  # the stack is only recorded where none has exited
        final_verdict(changed(-20, stacks=()))


def test_a_vcpu_that_is_stuck_before_it_came_to_the_page_says_nothing_of_it() -> None:
    samples = tuple(dataclasses.replace(each, faults=()) for each in STUCK.samples)
    with pytest.raises(DeadlineError):
        final_verdict(dataclasses.replace(STUCK, samples=samples))
