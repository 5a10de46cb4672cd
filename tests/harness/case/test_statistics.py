"""What is proven without tracepoints, and the near misses that must prove nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hostfault.case.model import (
    Event,
    Observation,
    Outcome,
    Page,
    ProbeReport,
    Sample,
    Scenario,
    Terms,
    VcpuPlace,
    VerdictKind,
    VmmDeed,
)
from hostfault.case.statistics import PLACES
from hostfault.case.verdict import SPIN_FAILURES, final_verdict, judge
from hostfault.plumbing.errors import DeadlineError, MissingCapabilityError

GFN, RIP, ADDRESS = 0xF8000, 0x4019D6, 0x7F0000008000
KERNEL_RIP = 0xFFFFFFFF82146CDF
AT_THE_ACCESS = VcpuPlace(RIP, GFN)
SIGBUS = Outcome("signal", 7, code=2, address=ADDRESS, rip=RIP)


def sample(at: float, failed: int, fixed: int = 0, **changes: Any) -> Sample:
    """A sample of a vCPU of which so many faults have come to nothing, and to something."""
    whole = Sample(
        at=at,
        faults=(),
        async_started={},
        async_ready={},
        vcpu_stats={"pf_taken": 5000 + failed + fixed, "pf_fixed": 5000 + fixed},
        vcpu_seconds=10.0 + 0.9 * at,
        run_state="running",
        backed=None if at <= 0 else False,
        place=None if at <= 0 else AT_THE_ACCESS,
    )
    return dataclasses.replace(whole, **changes)


def spinning(each: int = SPIN_FAILURES, **changes: Any) -> tuple[Sample, ...]:
    """Samples of a spin: one from before, and three in each of which faults came to nothing."""
    after = [sample(0.1 * number, each * number, **changes) for number in range(1, PLACES + 1)]
    return sample(-0.1, 0), *after


def observed(*samples: Sample, **changes: Any) -> Observation:
    whole = Observation(
        scenario=Scenario("virtiofs-dax", "zero", "load", async_pf=True),
        terms=Terms(takes_page=True, control=False, writes=False, by_kernel=False, expected=None),
        page=Page("shared/data", 0x8000, "tmpfs"),
        expected_gfn=GFN,
        waited=samples[-1].at,
        probe=ProbeReport(77, ADDRESS - 0x8000, ADDRESS, RIP, ('{"step":"touching"}',), None),
        samples=samples,
        counted_by="",
    )
    return dataclasses.replace(whole, **changes)


def with_outcome(outcome: Outcome, *samples: Sample, **changes: Any) -> Observation:
    whole = observed(*samples, **changes)
    return dataclasses.replace(whole, probe=dataclasses.replace(whole.probe, outcome=outcome))


def test_faults_that_come_to_nothing_at_the_access_to_a_page_that_is_gone_are_a_spin() -> None:
    verdict = judge(observed(*spinning()))
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert any("no tracepoint is counted" in line for line in verdict.evidence)
    assert not any("KVM tracepoint kvm_page_fault" in line for line in verdict.evidence)


def test_the_guests_kernel_spins_where_one_of_its_registers_points() -> None:
    in_the_kernel = {"place": VcpuPlace(KERNEL_RIP, GFN)}
    whole = observed(*spinning(**in_the_kernel))
    assert judge(whole) is None  # of a task's own access that proves nothing
    by_kernel = dataclasses.replace(whole.terms, by_kernel=True)
    verdict = judge(dataclasses.replace(whole, terms=by_kernel))
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN


@pytest.mark.parametrize(
    "changes",
    [
        {"place": VcpuPlace(RIP, None)},
        {"place": VcpuPlace(RIP + 4, GFN)},
        {"place": None},
        {"backed": True},
        {"backed": None},
        {"run_state": "internal-error"},
        {"run_state": "paused"},
        {"vcpu_stats": {}},
        {"vcpu_seconds": 10.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_without_one_of_the_proofs_nothing_is_proven(changes: dict[str, Any]) -> None:
    assert judge(observed(*spinning(**changes))) is None


def test_too_few_faults_are_no_spin() -> None:
    few = (SPIN_FAILURES - 1) // PLACES
    assert judge(observed(*spinning(few))) is None


def test_a_guest_whose_faults_are_mostly_resolved_does_not_spin() -> None:
    busy = [sample(0.1 * n, 100 * n, fixed=50 * n) for n in range(1, 4)]
    assert judge(observed(sample(-0.1, 0), *busy)) is None


def test_faults_that_have_stopped_are_no_spin() -> None:
    *most, last = spinning()
    again = dataclasses.replace(last, at=last.at + 0.1)
    assert judge(observed(*most, last, again)) is None


def test_two_samples_at_the_access_are_too_few() -> None:
    first, second, third, fourth = spinning()
    elsewhere = dataclasses.replace(third, place=VcpuPlace(KERNEL_RIP, None))
    assert judge(observed(first, second, elsewhere, fourth)) is None


def test_a_qemu_that_was_told_has_no_spinning_guest() -> None:
    told = observed(*spinning(), qemu_log="Convert non guest_memfd backed memory region")
    assert judge(told) is None
    by_its_policy = observed(
        *spinning(), vmm_policy="stop", vmm_deeds=(VmmDeed("held", 1, gpa=GFN << 12),)
    )
    assert judge(by_its_policy) is None
    untold = observed(*spinning(), vmm_policy="stop", vmm_deeds=(VmmDeed("loaded", 1),))
    assert judge(untold) is not None


def test_a_control_is_judged_as_anywhere() -> None:
    control = Terms(takes_page=False, control=True, writes=False, by_kernel=False, expected=0x88)
    quiet = (sample(-0.1, 0), sample(0.1, 0), sample(0.2, 0))
    verdict = judge(with_outcome(Outcome("value", 0x88), *quiet, terms=control))
    assert verdict is not None
    assert verdict.kind is VerdictKind.OK
    restless = (sample(-0.1, 0), sample(0.1, 0), sample(0.2, 5))
    assert judge(with_outcome(Outcome("value", 0x88), *restless, terms=control)) is None


def test_a_pass_without_the_host_s_log_says_so() -> None:
    control = Terms(takes_page=False, control=True, writes=False, by_kernel=False, expected=0x88)
    quiet = (sample(-0.1, 0), sample(0.1, 0), sample(0.2, 0))
    passed = with_outcome(Outcome("value", 0x88), *quiet, terms=control)
    assert not any("log" in line for line in final_verdict(passed).evidence)
    unread = dataclasses.replace(passed, host_log_read=False)
    assert "log" in final_verdict(unread).evidence[-1]


def test_an_error_of_the_task_alone_is_a_skip_that_says_why() -> None:
    quiet = (sample(-0.1, 0), sample(0.1, 3), sample(0.2, 3))
    alone = with_outcome(SIGBUS, *quiet)
    assert judge(alone) is None
    with pytest.raises(MissingCapabilityError, match="signal 0x7") as caught:
        final_verdict(alone)
    assert caught.value.capability == "tracing"


def test_with_tracepoints_the_same_is_no_skip() -> None:
    quiet = (sample(-0.1, 0), sample(0.1, 3), sample(0.2, 3))
    with pytest.raises(DeadlineError):
        final_verdict(with_outcome(SIGBUS, *quiet, counted_by="perf"))


def test_a_stop_that_names_the_frame_is_an_exit_and_one_that_does_not_is_a_skip() -> None:
    *before, last = spinning(run_state="internal-error")
    stopped = observed(*before, last, events=(Event("STOP", 0.1),))
    with pytest.raises(MissingCapabilityError, match="the VM stopped"):
        final_verdict(stopped)
    named = dataclasses.replace(stopped, qemu_log=f"error: region (0x{GFN << 12:x}) to shared")
    verdict = judge(named)
    assert verdict is not None
    assert verdict.kind is VerdictKind.VM_EXIT


def test_a_task_that_sleeps_is_a_skip_and_a_guest_that_is_silent_an_error() -> None:
    idle = [sample(0.1 * n, 0, vcpu_seconds=10.0, place=None) for n in range(1, 7)]
    asleep = observed(sample(-0.1, 0), *idle, guest_answers=True)
    with pytest.raises(MissingCapabilityError, match="the task sleeps"):
        final_verdict(asleep)
    with pytest.raises(DeadlineError):
        final_verdict(dataclasses.replace(asleep, guest_answers=False))
