"""A task that sleeps for ever, and time that proves nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from case_stand_ins import (
    GFN,
    RIP,
    asleep,
    facts_of,
    kind_of,
    observed,
    recorded,
    sample,
)

from hostfault.case.model import (
    FrameFaults,
    Observation,
    Outcome,
    VerdictKind,
)
from hostfault.case.verdict import final_verdict, judge
from hostfault.plumbing.errors import DeadlineError


def test_a_task_that_sleeps_for_ever_is_a_stall_but_only_at_the_deadline() -> None:
    assert judge(asleep()) is None
    verdict = final_verdict(asleep())
    assert verdict.kind is VerdictKind.STALL
    assert "5.0" in facts_of(verdict.summary)


def test_a_guest_that_does_not_answer_is_not_a_stall() -> None:
    with pytest.raises(DeadlineError, match="guest: does not answer"):
        final_verdict(dataclasses.replace(asleep(), guest_answers=False))


def test_a_probe_that_is_gone_is_not_a_stall() -> None:
    gone = dataclasses.replace(asleep().probe, ended=True)
    with pytest.raises(DeadlineError, match=r"no outcome, last step: .*touching.*, and it is gone"):
        final_verdict(dataclasses.replace(asleep(), probe=gone))


def test_row_3_a_probe_that_never_touched_is_not_a_stall() -> None:
    waiting = dataclasses.replace(asleep().probe, steps=('{"step":"armed"}',))
    with pytest.raises(DeadlineError):
        final_verdict(dataclasses.replace(asleep(), probe=waiting))
    calm = [sample(at, vcpu_seconds=10.0) for at in range(1, 7)]
    with pytest.raises(DeadlineError):  # it says that it touches, and the host has seen no fault
        final_verdict(observed(sample(-0.1), *calm, guest_answers=True))


def test_row_4_a_host_that_is_still_fetching_the_page_is_not_a_stall() -> None:
    fetching = [
        dataclasses.replace(each, async_started={GFN: 1 if each.at > 0 else 0})
        for each in asleep().samples
    ]
    with pytest.raises(DeadlineError):
        final_verdict(dataclasses.replace(asleep(), samples=tuple(fetching)))
    done = [dataclasses.replace(each, async_ready=each.async_started) for each in fetching]
    stalled = dataclasses.replace(asleep(), samples=tuple(done))
    assert final_verdict(stalled).kind is VerdictKind.STALL


def test_row_4_a_pause_between_attempts_that_fail_every_two_seconds_is_not_a_stall() -> None:
    counts = (1, 1, 2, 2, 3, 3, 3, 3, 3, 3)
    slow = [sample(at, (GFN, RIP, now)) for at, now in enumerate(counts, 1)]
    calm = [dataclasses.replace(each, vcpu_seconds=10.0) for each in slow]
    with pytest.raises(DeadlineError):
        final_verdict(observed(sample(-0.1), *calm, guest_answers=True))


def test_a_busy_vcpu_without_faults_is_not_a_stall() -> None:
    busy = asleep()
    samples = tuple(dataclasses.replace(s, vcpu_seconds=s.at) for s in busy.samples)
    with pytest.raises(DeadlineError, match="100% of a core"):
        final_verdict(dataclasses.replace(busy, samples=samples))


def test_a_vm_that_was_paused_meanwhile_is_not_a_stall() -> None:
    with pytest.raises(DeadlineError):
        final_verdict(asleep(run_state="paused"))


def test_a_frame_that_still_faults_now_and_then_is_not_a_stall() -> None:
    with pytest.raises(DeadlineError, match="1 faults on gfn"):
        final_verdict(
            observed(
                sample(-0.1),
                *[sample(at, vcpu_seconds=10.0) for at in (1, 2, 3, 4)],
                sample(5, (GFN, RIP, 1), vcpu_seconds=10.0),
                guest_answers=True,
            )
        )


def test_the_error_of_an_unproven_observation_tells_what_was_seen() -> None:
    unproven = observed(sample(-0.1), sample(30.0, (GFN + 1, RIP, 4000)))
    with pytest.raises(DeadlineError) as caught:
        final_verdict(unproven)
    text = str(caught.value)
    assert "waited 30.0 s" in text
    assert "4,000 faults on gfn 0xf8001" in text
    assert "expected gfn 0xf8000" in text


def test_an_observation_without_samples_is_an_error_and_no_crash() -> None:
    with pytest.raises(DeadlineError, match="no outcome"):
        final_verdict(observed())


def test_a_control_whose_task_never_faulted_on_the_page_waits_for_something_else() -> None:
    calm = [sample(at, vcpu_seconds=10.0) for at in range(1, 7)]
    locked = observed(sample(-0.1), *calm, guest_answers=True, fault="none", expected=0x88)
    with pytest.raises(DeadlineError):
        final_verdict(locked)


def test_row_4_a_real_host_that_fetches_for_two_seconds_at_a_time_is_no_stall() -> None:
    with pytest.raises(DeadlineError):
        final_verdict(recorded("none.host-still-fetches-7.3.4.json"))


def unserved(*, unanswered: int = 1, last: int = 1, **changes: Any) -> Observation:
    """One fault that a userfaultfd's server has not answered, in as many samples as it takes."""
    samples = [
        sample(
            at,
            (GFN, RIP, 1),
            async_started={GFN: 1},
            unanswered=last if at == 5 else unanswered,
            vcpu_seconds=10.0,
        )
        for at in range(1, 6)
    ]
    return observed(sample(-0.1, async_started={GFN: 0}), *samples, **changes)


def test_a_fault_that_nobody_answers_is_a_stall_at_once() -> None:
    verdict = judge(unserved())
    assert verdict is not None
    assert verdict.kind is VerdictKind.STALL
    assert "userfaultfd" in verdict.summary
    silent = dataclasses.replace(unserved(), guest_answers=False)
    assert final_verdict(silent).kind is VerdictKind.STALL, "the host says what it waits for"


def test_a_fault_that_is_answered_in_the_end_is_no_stall() -> None:
    assert judge(unserved(last=0)) is None
    assert judge(dataclasses.replace(unserved(), samples=unserved().samples[:-1])) is None


def test_an_access_that_ended_or_never_began_is_no_stall_of_a_server() -> None:
    assert kind_of(unserved(outcome=Outcome("value", 1), expected=1)) is VerdictKind.OK
    waiting = dataclasses.replace(unserved().probe, steps=('{"step":"armed"}',))
    assert judge(dataclasses.replace(unserved(), probe=waiting)) is None


def test_a_vcpu_that_spins_beside_an_unanswered_fault_is_no_stall() -> None:
    spinning = [
        dataclasses.replace(
            each,
            faults=(FrameFaults(GFN, RIP, int(each.at) * 100),),
            async_started={GFN: int(each.at) * 100},
            async_ready={GFN: int(each.at) * 100},
            vcpu_stats={"pf_taken": 5000 + int(each.at) * 100},
        )
        for each in unserved().samples
        if each.at > 0
    ]
    verdict = judge(observed(sample(-0.1, async_started={GFN: 0}), *spinning))
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
