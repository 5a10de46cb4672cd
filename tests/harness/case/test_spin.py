"""A spin is failed attempts to back a page that is gone; its near misses are none."""

from __future__ import annotations

import dataclasses

import pytest
from case_stand_ins import (
    ADDRESS,
    BUS_ADRERR,
    FEW,
    GFN,
    MANY,
    RIP,
    SIGBUS,
    facts_of,
    kind_of,
    observed,
    rising,
    sample,
    spinning,
)

from hostfault.case.model import (
    Observation,
    Outcome,
    Sample,
    Terms,
    UserspaceExit,
    VerdictKind,
)
from hostfault.case.verdict import final_verdict, judge
from hostfault.plumbing.errors import DeadlineError


def test_64_failed_attempts_on_the_frame_are_a_spin() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert facts_of(verdict.summary) == ["64", "0xf8000", "0.3", "0x4019d6"]


def test_the_evidence_of_a_spin_has_a_line_from_every_source() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    text = "\n".join(verdict.evidence)
    for source in (
        "kvm_page_fault",
        "kvm_try_async_get_page",
        "KVM statistics: 64 faults came to nothing",
        "/proc/PID/mem",
        "query-stats",
        "kvm_userspace_exit",
        "vCPU threads",
    ):
        assert source in text


def test_63_failed_attempts_are_not_a_spin() -> None:
    assert judge(spinning(FEW)) is None


def test_faults_from_before_the_touch_do_not_count() -> None:
    before = sample(-0.1, (GFN, RIP, 1000))
    assert judge(observed(before, *rising(1000 + FEW)[1:])) is None
    assert kind_of(observed(before, *rising(1000 + MANY)[1:])) is VerdictKind.SPIN


def test_without_a_sample_from_before_the_touch_no_count_means_anything() -> None:
    assert judge(observed(*rising(9000)[1:])) is None


def test_faults_on_another_frame_are_not_a_spin() -> None:
    assert judge(observed(*rising(9000, gfn=GFN + 1))) is None


def test_the_frame_is_found_where_it_was_not_computed() -> None:
    verdict = judge(spinning(90, expected_gfn=None))
    assert verdict is not None
    assert facts_of(verdict.summary)[:2] == ["90", "0xf8000"]


def test_row_1_a_page_that_is_fetched_slowly_is_no_spin_however_often_its_task_retries() -> None:
    """Without async page faults a guest's tick ends the halt, the load retries, nothing failed."""
    fetching = rising(250, async_started={GFN: 250})
    assert judge(observed(*fetching)) is None
    failing = [
        dataclasses.replace(each, async_ready={GFN: 80 * number})
        for number, each in enumerate(fetching)
    ]
    verdict = judge(observed(*failing))
    assert verdict is not None
    assert verdict.summary.startswith("240 failed attempts")


def test_row_5_a_burst_of_retries_in_one_sample_is_no_spin() -> None:
    assert judge(observed(sample(-0.1), sample(0.1, (GFN, RIP, 9000)))) is None
    two = sample(0.1, (GFN, RIP, 8000)), sample(0.2, (GFN, RIP, 9000))
    assert judge(observed(sample(-0.1), *two)) is None


@pytest.mark.parametrize("resolved", ["pf_fixed", "pf_spurious", "pf_emulate", "pf_fast"])
def test_row_6_faults_that_came_to_something_are_no_spin(resolved: str) -> None:
    samples = [
        dataclasses.replace(each, vcpu_stats={**each.vcpu_stats, resolved: 300 * number})
        for number, each in enumerate(rising(900))
    ]
    samples[0] = dataclasses.replace(samples[0], vcpu_stats={"pf_taken": 5000, resolved: 0})
    assert judge(observed(*samples)) is None


def test_row_15_two_tasks_that_spin_on_one_page_are_a_spin() -> None:
    samples = [sample(-0.1)]
    for at in (1, 2, 3):
        samples.append(sample(at / 10, (GFN, RIP, 100 * at), (GFN, RIP + 4, 90 * at)))
    assert kind_of(observed(*samples)) is VerdictKind.SPIN


def test_a_page_that_the_host_can_read_is_no_spin() -> None:
    assert judge(observed(*rising(900, backed=True))) is None
    assert judge(observed(*rising(900, backed=None))) is None, "nobody has looked"


def test_an_error_that_reached_qemu_is_no_spin_of_kvms() -> None:
    told = (UserspaceExit(reason=39, errno=-14, count=20),)
    assert judge(observed(*rising(900, exits=told))) is None
    interrupted = (UserspaceExit(reason=10, errno=-4, count=20),)
    assert kind_of(observed(*rising(900, exits=interrupted))) is VerdictKind.SPIN


def test_faults_from_an_instruction_that_the_probe_did_not_name_decide_only_at_the_deadline() -> (
    None
):
    elsewhere = observed(*rising(MANY, rip=RIP + 4))
    assert judge(elsewhere) is None
    verdict = final_verdict(elsewhere)
    assert verdict.kind is VerdictKind.SPIN
    assert "not the probe's 0x4019d6" in verdict.summary


def test_a_tracepoint_that_tells_no_instruction_will_do() -> None:
    assert kind_of(observed(*rising(MANY, rip=0))) is VerdictKind.SPIN


def test_a_system_call_spins_in_the_guests_kernel_and_nowhere_else() -> None:
    kernel = Terms(True, False, False, by_kernel=True, expected=None)
    assert judge(observed(*rising(MANY), terms=kernel)) is None
    inside = observed(*rising(MANY, rip=0xFFFFFFFF82146CDF), terms=kernel)
    assert kind_of(inside) is VerdictKind.SPIN


def test_a_guests_guest_spins_by_what_kvm_itself_tries_and_not_by_faults_that_it_hands_on() -> None:
    nested = Terms(True, False, False, by_kernel=False, expected=None, nested=True)
    handed_on = rising(9000)
    with pytest.raises(DeadlineError):
        final_verdict(observed(*handed_on, terms=nested))

    def tried(started: int, ready: int) -> Observation:
        samples = [
            dataclasses.replace(
                each, async_started={GFN: started * at}, async_ready={GFN: ready * at}
            )
            for at, each in enumerate(rising(150))
        ]
        return observed(*samples, terms=nested)

    assert judge(tried(FEW // 3, 1000)) is None, "the guest's guest can fault at any address"
    assert judge(tried(1000, FEW // 3)) is None, "fetched slowly"
    verdict = judge(tried(50, 50))
    assert verdict is not None
    assert verdict.summary.startswith("150 failed attempts")


def test_many_faults_that_have_stopped_are_not_a_spin() -> None:
    after = [sample(at / 10, (GFN, RIP, 9000)) for at in (1, 2, 3, 4)]
    assert judge(observed(sample(-0.1), *after)) is None


def test_without_statistics_a_busy_vcpu_is_the_second_source() -> None:
    assert kind_of(observed(*without_statistics(0.9))) is VerdictKind.SPIN


def test_without_statistics_and_with_an_idle_vcpu_the_tracepoint_stands_alone() -> None:
    assert judge(observed(*without_statistics(0.01))) is None


def without_statistics(share: float) -> list[Sample]:
    """A rise in which the vCPU thread uses that share of a core."""
    return [
        dataclasses.replace(each, vcpu_stats={}, vcpu_seconds=10.0 + share * each.at)
        for each in rising(MANY)
    ]


@pytest.mark.parametrize("state", ["paused", "internal-error", ""])
def test_a_vm_that_does_not_run_does_not_spin(state: str) -> None:
    assert judge(observed(*rising(MANY, run_state=state))) is None


def test_row_7_an_access_that_ended_after_64_failed_attempts_is_no_pass() -> None:
    ended = [*rising(9000), sample(0.4, (GFN, RIP, 9000))]
    verdict = judge(observed(*ended, outcome=Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP)))
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert facts_of(verdict.summary) == ["9,000", "0xf8000", "SIGBUS"]
