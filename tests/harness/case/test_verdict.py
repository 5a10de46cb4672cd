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
    UserspaceExit,
    VerdictKind,
    observation_from_json,
)
from hostfault.case.verdict import SPIN_FAILURES, final_verdict, judge
from hostfault.plumbing.errors import DeadlineError, GuestLostError, HostfaultError

GFN, RIP, ADDRESS = 0xF8000, 0x4019D6, 0x7F0000008000
SIGBUS, BUS_ADRERR, SIGTERM, SI_USER = 7, 2, 15, 0
FEW = SPIN_FAILURES - 1
MANY = SPIN_FAILURES
RECORDED = sorted((Path(__file__).parents[2] / "observations").glob("*.json"))


def sample(at: float, *faults: tuple[int, int, int], **changes: Any) -> Sample:
    """A sample of a vCPU that does nothing but take these faults (gfn, rip, count)."""
    return dataclasses.replace(
        Sample(
            at=at,
            faults=tuple(FrameFaults(*fault) for fault in faults),
            async_started={},
            async_ready={},
            vcpu_stats={"pf_taken": 5000 + sum(count for _, _, count in faults)},
            vcpu_seconds=10.0 + 0.9 * at,
            run_state="running",
            backed=None if at <= 0 else False,
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
        steps=("armed", '{"step":"touching"}'),
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


def rising(count: int, *, gfn: int = GFN, rip: int = RIP, **changes: Any) -> list[Sample]:
    """A sample from before the touch, and three that see faults rise to ``count``."""
    counts = [(0.1, count - 2), (0.2, count - 1), (0.3, count)]
    return [sample(-0.1), *(sample(at, (gfn, rip, now), **changes) for at, now in counts)]


def spinning(count: int = MANY, **changes: Any) -> Observation:
    return observed(*rising(count), **changes)


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
    wanted = path.name.split(".")[0]
    if wanted == "none":
        with pytest.raises(HostfaultError):
            final_verdict(observation)
    else:
        assert final_verdict(observation).kind == wanted


NOT_RECORDED_YET = {"vcpu-stuck", "host-bug", "vmm-death"}  # synthetic ones are below


def test_there_is_a_recorded_observation_of_every_verdict() -> None:
    recorded = {path.name.split(".")[0] for path in RECORDED} - {"none"}
    assert recorded | NOT_RECORDED_YET == set(VerdictKind)
    assert not recorded & NOT_RECORDED_YET


# --- spin ---


def test_64_failed_attempts_on_the_frame_are_a_spin() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert verdict.summary == (
        "64 failed attempts to back gfn 0xf8000 in 0.3 s, task at 0x4019d6 never moved"
    )


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
    assert verdict.summary.startswith("90 failed attempts to back gfn 0xf8000")


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
    assert verdict.summary == (
        "spun: 9,000 failed attempts to back gfn 0xf8000, then the task reports SIGBUS"
    )


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
    "outcome",
    [
        Outcome("signal", SIGBUS, BUS_ADRERR, ADDRESS, RIP),
        Outcome("errno", 5),
        Outcome("value", 0x88),
    ],
)
def test_row_8_the_outcome_of_an_access_that_the_host_never_saw_is_not_believed(
    outcome: Outcome,
) -> None:
    calm = sample(-0.1), sample(0.1), sample(0.2)
    assert judge(observed(*calm, outcome=outcome)) is None
    elsewhere = [sample(-0.1), *(sample(at, (GFN, RIP + 4, 1)) for at in (0.1, 0.2))]
    assert judge(observed(*elsewhere, outcome=outcome)) is None, "the fault is not the access's"
    by_the_guest = observed(*calm, outcome=outcome, fault="guest")
    assert kind_of(by_the_guest) in (VerdictKind.TASK_ERROR, VerdictKind.STALE)


def test_a_signal_from_elsewhere_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", 11, 1, 0x10, RIP + 0x100))) is None


def test_a_signal_that_somebody_sent_is_not_the_answer_to_the_access() -> None:
    assert judge(quiet(Outcome("signal", SIGTERM, SI_USER, ADDRESS, RIP))) is None


def test_an_errno_is_a_task_error() -> None:
    verdict = judge(quiet(Outcome("errno", 5)))
    assert verdict is not None
    assert verdict.summary == "errno 5 (EIO)"


# --- the VM stops ---

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
    ],
    ids=["pvpanic", "reset"],
)
def test_a_guest_that_dies_is_a_guest_death(death: dict[str, Any]) -> None:
    assert kind_of(spinning(**death)) is VerdictKind.GUEST_DEATH


RESET = Event("SHUTDOWN", 0.1, {"guest": True, "reason": "guest-reset"})


def test_a_silent_reset_on_an_emulated_cpu_is_a_lost_guest_and_no_verdict() -> None:
    lost = spinning(events=(RESET,), qemu_ended=Ended(0, None, ""), on_tcg=True)
    assert judge(lost) is None
    with pytest.raises(GuestLostError):
        final_verdict(lost)


@pytest.mark.parametrize(
    "changes",
    [
        {"on_tcg": False},
        {"guest_console": "[ 3.1] Kernel panic - not syncing: x\n"},
        {"events": (Event("GUEST_PANICKED", 0.1, {}), RESET)},
    ],
    ids=["real CPU", "a panic on the console", "pvpanic"],
)
def test_a_reset_that_something_accounts_for_is_a_guest_death(changes: dict[str, Any]) -> None:
    dead = {"events": (RESET,), "qemu_ended": Ended(0, None, ""), "on_tcg": True, **changes}
    assert kind_of(spinning(**dead)) is VerdictKind.GUEST_DEATH


def test_row_11_words_on_the_console_are_no_death_but_evidence_of_one() -> None:
    panic = "[ 3.1] Kernel panic - not syncing: Attempted to kill init!\n"
    assert judge(observed(sample(-0.1), sample(0.1), guest_console=panic)) is None
    event = Event("GUEST_PANICKED", 0.1, {"action": "pause"})
    verdict = judge(observed(sample(-0.1), sample(0.1), guest_console=panic, events=(event,)))
    assert verdict is not None
    assert "guest console: [ 3.1] Kernel panic" in "\n".join(verdict.evidence)


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


def test_row_16_a_vcpu_that_stays_in_the_hosts_kernel_has_a_verdict_of_its_own() -> None:
    stack = "[<0>] kvm_wait_for_ever+0x12/0x30 [kvm]\n[<0>] vcpu_run+0x1/0x2\n"
    stuck = [sample(at, vcpu_stats={}, stacks=(stack,)) for at in range(1, 7)]
    verdict = final_verdict(observed(sample(-0.1), *stuck))
    assert verdict.kind is VerdictKind.VCPU_STUCK
    assert verdict.summary.startswith("the vCPU has not left kvm_wait_for_ever")
    moving = [
        dataclasses.replace(each, stacks=(f"[<0>] f{number}+0x1/0x2",))
        for number, each in enumerate(stuck)
    ]
    with pytest.raises(DeadlineError):
        final_verdict(observed(sample(-0.1), *moving))


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
