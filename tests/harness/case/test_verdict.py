"""Every verdict from an observation, and the near misses that must prove nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hostfault.case.model import (
    Ended,
    Event,
    FrameFaults,
    Observation,
    Outcome,
    Page,
    ProbeReport,
    Sample,
    Scenario,
    Terms,
    VerdictKind,
    observation_from_json,
)
from hostfault.case.verdict import SPIN_FAULTS, final_verdict, judge
from hostfault.plumbing.errors import DeadlineError

GFN, RIP, ADDRESS = 0xF8000, 0x4019D6, 0x7F0000008000
SIGBUS, BUS_ADRERR, SIGTERM, SI_USER = 7, 2, 15, 0
FEW = SPIN_FAULTS - 1
MANY = SPIN_FAULTS
RECORDED = sorted((Path(__file__).parents[2] / "observations").glob("*.json"))


def sample(at: float, *faults: tuple[int, int, int], **changes: Any) -> Sample:
    """A sample of a vCPU that does nothing but take these faults (gfn, rip, count)."""
    return dataclasses.replace(
        Sample(
            at=at,
            faults=tuple(FrameFaults(*fault) for fault in faults),
            async_started={},
            async_ready=0,
            vcpu_stats={"pf_taken": 5000 + sum(count for _, _, count in faults)},
            vcpu_seconds=10.0 + 0.9 * at,
            run_state="running",
        ),
        **changes,
    )


def observed(
    *samples: Sample,
    outcome: Outcome | None = None,
    access: str = "load",
    fault: str = "zero",
    expected: int | None = None,
    **changes: Any,
) -> Observation:
    probe = ProbeReport(
        pid=77,
        mapping=ADDRESS - 0x8000,
        address=ADDRESS,
        rip=RIP,
        steps=("armed", "going"),
        outcome=outcome,
    )
    whole = Observation(
        scenario=Scenario("virtiofs-dax", fault, access, async_pf=True),
        terms=Terms(
            takes_page=fault == "zero",
            control=fault == "none",
            writes=access == "store",
            by_kernel=False,
            expected=expected,
        ),
        page=Page("shared/data", 0x8000, "tmpfs"),
        expected_gfn=GFN,
        waited=samples[-1].at if samples else 0.0,
        probe=probe,
        samples=samples,
    )
    return dataclasses.replace(whole, **changes)


def spinning(count: int = MANY, **changes: Any) -> Observation:
    return observed(sample(-0.1), sample(0.1, (GFN, RIP, count)), **changes)


def quiet(outcome: Outcome | None = None, **changes: Any) -> Observation:
    """One legitimate fault, and then nothing any more."""
    once = (GFN, RIP, 1)
    return observed(sample(-0.1), sample(0.1, once), sample(0.2, once), outcome=outcome, **changes)


def kind_of(observation: Observation) -> VerdictKind | None:
    verdict = judge(observation)
    return verdict.kind if verdict else None


# --- recorded observations ---


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_observation_replays_to_the_verdict_in_its_file_name(path: Path) -> None:
    observation = observation_from_json(json.loads(path.read_text()))
    assert final_verdict(observation).kind == path.name.split(".")[0]


def test_there_is_a_recorded_observation_of_every_verdict() -> None:
    assert {path.name.split(".")[0] for path in RECORDED} == set(VerdictKind)


# --- spin ---


def test_64_faults_on_the_frame_are_a_spin() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert verdict.summary == "64 faults on gfn 0xf8000 in 0.1 s, task at 0x4019d6 never moved"


def test_the_evidence_of_a_spin_has_a_line_from_every_source() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    text = "\n".join(verdict.evidence)
    for source in ("kvm_page_fault", "kvm_try_async_get_page", "query-stats", "vCPU threads"):
        assert source in text


def test_63_faults_are_not_a_spin() -> None:
    assert judge(spinning(FEW)) is None


def test_faults_from_before_the_touch_do_not_count() -> None:
    before = sample(-0.1, (GFN, RIP, 1000))
    assert judge(observed(before, sample(0.1, (GFN, RIP, 1000 + FEW)))) is None
    assert kind_of(observed(before, sample(0.1, (GFN, RIP, 1000 + MANY)))) is VerdictKind.SPIN


def test_without_a_sample_from_before_the_touch_no_count_means_anything() -> None:
    assert judge(observed(sample(0.1, (GFN, RIP, 10)), sample(0.2, (GFN, RIP, 9000)))) is None


def test_faults_on_another_frame_are_not_a_spin() -> None:
    assert judge(observed(sample(-0.1), sample(0.1, (GFN + 1, RIP, 9000)))) is None


def test_the_frame_is_found_where_it_was_not_computed() -> None:
    samples = sample(-0.1), sample(0.1, (1, 0xFFFF, 500), (GFN, RIP, 90), (2, RIP, 3))
    verdict = judge(observed(*samples, expected_gfn=None))
    assert verdict is not None
    assert verdict.summary.startswith("90 faults on gfn 0xf8000")


def test_a_task_that_faults_from_two_places_moves() -> None:
    faults = (GFN, RIP, 9000), (GFN, RIP + 4, 9000)
    assert judge(observed(sample(-0.1), sample(0.1, *faults))) is None


def test_a_stray_fault_from_elsewhere_only_moves_the_start_of_the_count() -> None:
    stray = GFN, 0xFFFFFFFF81000000, 1
    samples = [sample(-0.1), sample(0.1, stray, (GFN, RIP, 40))]
    few = observed(*samples, sample(0.2, stray, (GFN, RIP, 40 + FEW)))
    assert judge(few) is None
    verdict = judge(observed(*samples, sample(0.2, stray, (GFN, RIP, 40 + MANY))))
    assert verdict is not None
    assert verdict.summary == "64 faults on gfn 0xf8000 in 0.1 s, task at 0x4019d6 never moved"


def test_faults_from_an_instruction_that_the_probe_did_not_name_decide_only_at_the_deadline() -> (
    None
):
    elsewhere = observed(sample(-0.1), sample(0.1, (GFN, RIP + 4, MANY)))
    assert judge(elsewhere) is None
    verdict = final_verdict(elsewhere)
    assert verdict.kind is VerdictKind.SPIN
    assert "not the probe's 0x4019d6" in verdict.summary


def test_a_tracepoint_that_tells_no_instruction_will_do() -> None:
    assert kind_of(observed(sample(-0.1), sample(0.1, (GFN, 0, MANY)))) is VerdictKind.SPIN


def test_many_faults_that_have_stopped_are_not_a_spin() -> None:
    after = [sample(at / 10, (GFN, RIP, 9000)) for at in (1, 2)]
    assert judge(observed(sample(-0.1), *after)) is None


def test_statistics_that_contradict_the_tracepoint_prevent_a_spin() -> None:
    after = sample(0.1, (GFN, RIP, MANY), vcpu_stats={"pf_taken": 5000 + MANY // 2 - 1})
    assert judge(observed(sample(-0.1), after)) is None


def test_without_statistics_a_busy_vcpu_is_the_second_source() -> None:
    before = sample(-0.1, vcpu_stats={})
    busy = sample(0.1, (GFN, RIP, MANY), vcpu_stats={})
    assert kind_of(observed(before, busy)) is VerdictKind.SPIN


def test_without_statistics_and_with_an_idle_vcpu_the_tracepoint_stands_alone() -> None:
    before = sample(-0.1, vcpu_stats={}, vcpu_seconds=10.0)
    idle = sample(0.1, (GFN, RIP, MANY), vcpu_stats={}, vcpu_seconds=10.01)
    assert judge(observed(before, idle)) is None


@pytest.mark.parametrize("state", ["paused", "internal-error", ""])
def test_a_vm_that_does_not_run_does_not_spin(state: str) -> None:
    after = sample(0.1, (GFN, RIP, MANY), run_state=state)
    assert judge(observed(sample(-0.1), after)) is None


# --- a guest that lies ---


def test_a_guest_cannot_report_its_way_out_of_a_spin() -> None:
    lying = spinning(outcome=Outcome("value", 0x88), expected=0x88)
    assert judge(lying) is None
    verdict = final_verdict(lying)
    assert verdict.kind is VerdictKind.SPIN
    assert "though the guest reports an outcome" in verdict.summary


def test_an_outcome_waits_until_the_frame_is_quiet() -> None:
    ended = Outcome("value", 0x88)
    first = observed(sample(-0.1), sample(0.1, (GFN, RIP, 2)), outcome=ended, expected=0x88)
    assert judge(first) is None
    then = dataclasses.replace(first, samples=(*first.samples, sample(0.2, (GFN, RIP, 2))))
    assert kind_of(then) is VerdictKind.OK


def test_an_outcome_of_an_unknown_kind_proves_nothing() -> None:
    assert judge(quiet(Outcome("all-is-well", 1), expected=1)) is None


# --- the outcome of the access ---


def test_a_load_of_the_right_byte_is_ok() -> None:
    assert kind_of(quiet(Outcome("value", 0x88), expected=0x88)) is VerdictKind.OK


def test_a_load_that_succeeds_beyond_the_end_of_the_file_is_stale() -> None:
    verdict = judge(quiet(Outcome("value", 0x88), expected=None))
    assert verdict is not None
    assert verdict.kind is VerdictKind.STALE
    assert verdict.summary == "load returned 0x88, but the host file has no such byte"


def test_a_wrong_byte_of_an_intact_file_is_stale_too() -> None:
    wrong = quiet(Outcome("value", 0), expected=0x88, fault="none")
    assert kind_of(wrong) is VerdictKind.STALE


def test_a_store_is_ok_when_the_host_file_holds_the_byte() -> None:
    stored = quiet(Outcome("value", 0x5A), access="store", stored_byte=0x5A)
    assert kind_of(stored) is VerdictKind.OK


def test_a_store_that_reached_no_file_is_stale() -> None:
    lost = quiet(Outcome("value", 0x5A), access="store", stored_byte=None)
    assert kind_of(lost) is VerdictKind.STALE


def test_a_store_into_an_intact_file_needs_a_look_at_the_file() -> None:
    unseen = quiet(Outcome("value", 0x5A), access="store", fault="none", expected=0x5A)
    assert judge(unseen) is None


def test_a_signal_for_the_touched_page_is_a_task_error() -> None:
    verdict = judge(quiet(Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP)))
    assert verdict is not None
    assert verdict.kind is VerdictKind.TASK_ERROR
    assert "SIGBUS" in verdict.summary


def test_a_signal_from_the_touching_instruction_needs_no_address() -> None:
    assert kind_of(quiet(Outcome("signal", 11, 0x80, 0, RIP))) is VerdictKind.TASK_ERROR


@pytest.mark.parametrize(
    "outcome", [Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP), Outcome("errno", 5)]
)
def test_an_error_for_an_access_that_the_host_never_saw_is_not_believed(outcome: Outcome) -> None:
    calm = sample(-0.1), sample(0.1), sample(0.2)
    assert judge(observed(*calm, outcome=outcome)) is None
    by_the_guest = observed(*calm, outcome=outcome, fault="guest")
    assert kind_of(by_the_guest) is VerdictKind.TASK_ERROR


def test_a_signal_from_elsewhere_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", 11, 1, 0x10, RIP + 0x100))) is None


def test_a_signal_that_somebody_sent_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", SIGTERM, SI_USER, ADDRESS, RIP))) is None


def test_an_errno_is_a_task_error() -> None:
    verdict = judge(quiet(Outcome("errno", 5)))
    assert verdict is not None
    assert verdict.summary == "errno 5 (EIO)"


# --- the VM stops ---

STOPPED = sample(0.1, run_state="internal-error")


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


def test_internal_error_without_the_event_proves_nothing() -> None:
    assert judge(observed(sample(-0.1), STOPPED)) is None


def test_a_stop_by_somebody_else_is_no_vm_exit() -> None:
    paused = sample(0.1, run_state="paused")
    assert judge(observed(sample(-0.1), paused, events=(Event("STOP", 0.05),))) is None


def test_a_stop_from_before_the_first_sample_does_not_count() -> None:
    assert judge(observed(sample(-0.1), STOPPED, events=(Event("STOP", -5.0),))) is None


# --- deaths, worst first ---


def test_a_host_that_ended_is_a_host_death_whatever_else_was_seen() -> None:
    dead = spinning(
        host_ended=Ended(None, None, "x\n[ 9.1] Kernel panic - not syncing: Fatal\nend"),
        qemu_ended=Ended(None, 6, "gone"),
        outcome=Outcome("value", 1),
        expected=1,
    )
    verdict = judge(dead)
    assert verdict is not None
    assert verdict.kind is VerdictKind.HOST_DEATH
    assert "Kernel panic" in verdict.summary


def test_a_host_that_hangs_is_a_host_death_that_says_what_went_unanswered() -> None:
    words = "RAX=1 RIP=2\n[ 9.1] clocksource: all is well\nwaited 10 s; SSH went unanswered"
    verdict = judge(spinning(host_ended=Ended(None, None, words)))
    assert verdict is not None
    assert verdict.kind is VerdictKind.HOST_DEATH
    assert verdict.summary == "the host kernel is gone: waited 10 s; SSH went unanswered"


def test_a_panic_event_of_the_host_is_a_host_death() -> None:
    panic = Event("GUEST_PANICKED", 0.1, {"action": "pause"}, host=True)
    assert kind_of(spinning(events=(panic,))) is VerdictKind.HOST_DEATH


def test_a_qemu_that_a_signal_ended_is_a_vmm_death() -> None:
    verdict = judge(spinning(qemu_ended=Ended(None, SIGBUS, "")))
    assert verdict is not None
    assert verdict.kind is VerdictKind.VMM_DEATH
    assert verdict.summary == "QEMU ended with SIGBUS: (nothing)"


def test_a_qemu_that_was_told_to_end_has_not_died() -> None:
    told = Event("SHUTDOWN", 0.1, {"guest": False, "reason": "host-signal"})
    ended = observed(sample(-0.1), qemu_ended=Ended(0, None, ""), events=(told,))
    assert judge(ended) is None
    with pytest.raises(DeadlineError, match="QEMU was told to end"):
        final_verdict(ended)


def test_a_qemu_that_ends_because_its_guest_reset_is_a_guest_death() -> None:
    reset = Event("SHUTDOWN", 0.1, {"guest": True, "reason": "guest-reset"})
    assert (
        kind_of(spinning(qemu_ended=Ended(0, None, ""), events=(reset,))) is VerdictKind.GUEST_DEATH
    )


@pytest.mark.parametrize(
    "death",
    [
        {"events": (Event("GUEST_PANICKED", 0.1, {"action": "pause"}),)},
        {"events": (Event("RESET", 0.1, {"guest": True, "reason": "guest-reset"}),)},
        {"guest_console": "[ 3.1] Kernel panic - not syncing: Attempted to kill init!\n"},
        {"guest_console": "[ 3.1] Oops: general protection fault, probably for\n"},
    ],
    ids=["pvpanic", "reset", "console panic", "console oops"],
)
def test_a_guest_that_dies_is_a_guest_death(death: dict[str, Any]) -> None:
    assert kind_of(spinning(**death)) is VerdictKind.GUEST_DEATH


def test_a_reset_that_the_harness_asked_for_is_no_death() -> None:
    reset = Event("RESET", 0.1, {"guest": False, "reason": "host-qmp-system-reset"})
    assert judge(observed(sample(-0.1), sample(0.1), events=(reset,))) is None


def test_a_segfault_of_a_guest_task_is_no_death_of_the_guest() -> None:
    console = "[ 2.0] traps: probe[77] general protection fault ip:4019d6 sp:7ffe error:0\n"
    assert judge(observed(sample(-0.1), sample(0.1), guest_console=console)) is None


# --- stall, and time that proves nothing ---


def asleep(**changes: Any) -> Observation:
    """Two faults, and then seconds of nothing."""
    calm = [sample(at, (GFN, RIP, 2), vcpu_seconds=10.0 + 0.01 * at) for at in range(1, 7)]
    calm[2] = dataclasses.replace(calm[2], **changes)
    return observed(sample(-0.1), *calm, guest_answers=True)


def test_a_task_that_sleeps_for_ever_is_a_stall_but_only_at_the_deadline() -> None:
    assert judge(asleep()) is None
    verdict = final_verdict(asleep())
    assert verdict.kind is VerdictKind.STALL
    assert "no fault and no progress in 5.0 s" in verdict.summary


def test_a_guest_that_does_not_answer_is_not_a_stall() -> None:
    with pytest.raises(DeadlineError, match="guest: does not answer"):
        final_verdict(dataclasses.replace(asleep(), guest_answers=False))


def test_a_probe_that_is_gone_is_not_a_stall() -> None:
    gone = dataclasses.replace(asleep().probe, ended=True)
    with pytest.raises(DeadlineError, match="no outcome, last step: going, and it is gone"):
        final_verdict(dataclasses.replace(asleep(), probe=gone))


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
