"""Deaths, worst first, and the ends that prove nothing."""

from __future__ import annotations

from signal import SIGKILL
from typing import Any

import pytest
from case_stand_ins import (
    SIGBUS,
    facts_of,
    kind_of,
    observed,
    sample,
    spinning,
)

from hostfault.case.model import (
    Ended,
    Event,
    Outcome,
    VerdictKind,
)
from hostfault.case.verdict import final_verdict, judge
from hostfault.plumbing.errors import DeadlineError, GuestLostError, HostfaultError


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
    assert verdict.summary.endswith(words.splitlines()[-1])


def test_a_panic_event_of_the_host_is_a_host_death() -> None:
    panic = Event("GUEST_PANICKED", 0.1, {"action": "pause"}, host=True)
    assert kind_of(spinning(events=(panic,))) is VerdictKind.HOST_DEATH


def test_a_qemu_that_a_signal_ended_is_a_vmm_death() -> None:
    verdict = judge(spinning(qemu_ended=Ended(None, SIGBUS, "")))
    assert verdict is not None
    assert verdict.kind is VerdictKind.VMM_DEATH
    assert facts_of(verdict.summary) == ["SIGBUS"]


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


HOST_RESET = Event("SHUTDOWN", 0.1, {"guest": True, "reason": "guest-reset"}, host=True)


def test_an_emulated_host_that_resets_itself_silently_is_lost_and_no_verdict() -> None:
    lost = spinning(events=(HOST_RESET,), host_ended=Ended(0, None, "hello"), on_tcg=True)
    assert judge(lost) is None
    with pytest.raises(GuestLostError):
        final_verdict(lost)


@pytest.mark.parametrize(
    "changes",
    [
        {"on_tcg": False},
        {"host_ended": Ended(0, None, "[ 3.1] BUG: unable to handle page fault\n")},
        {"events": (Event("GUEST_PANICKED", 0.1, {}, host=True), HOST_RESET)},
    ],
    ids=["real CPU", "an oops on the console", "pvpanic"],
)
def test_a_reset_of_a_host_that_something_accounts_for_is_a_host_death(
    changes: dict[str, Any],
) -> None:
    silent = Ended(0, None, "hello")
    dead = {"events": (HOST_RESET,), "host_ended": silent, "on_tcg": True, **changes}
    assert kind_of(spinning(**dead)) is VerdictKind.HOST_DEATH


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


OOM = """\
CPU 0/KVM invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0
 shmem_fault+0x84/0x310
 hva_to_pfn+0x300/0x450 [kvm]
Memory cgroup stats for /hostfault-limit:
oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/hostfault-limit,task=qemu,pid=9
Memory cgroup out of memory: Killed process 9 (qemu)
"""


def test_a_qemu_that_was_killed_for_the_cases_own_limit_is_a_vmm_death() -> None:
    killed = spinning(qemu_ended=Ended(None, SIGKILL, ""), host_log=OOM)
    verdict = final_verdict(killed)
    assert verdict.kind is VerdictKind.VMM_DEATH
    assert "CPU 0/KVM" in verdict.summary


@pytest.mark.parametrize(
    "log",
    [
        "",
        OOM.replace("oom_memcg=/hostfault-limit", "oom_memcg=/user.slice"),
    ],
    ids=["silent", "another cgroup"],
)
def test_any_other_sigkill_of_qemu_is_trouble(log: str) -> None:
    killed = spinning(qemu_ended=Ended(None, SIGKILL, ""), host_log=log)
    with pytest.raises(HostfaultError, match="QEMU was ended by SIGKILL"):
        final_verdict(killed)


@pytest.mark.parametrize(
    "log",
    [
        OOM.replace("CPU 0/KVM invoked", "qemu-system-x86 invoked"),
        OOM.replace("hva_to_pfn", "do_anonymous_page"),
    ],
    ids=["another thread", "not for a page of the guest's"],
)
def test_a_qemu_that_is_killed_before_its_guest_wants_the_page_is_tried_again(log: str) -> None:
    killed = spinning(qemu_ended=Ended(None, SIGKILL, ""), host_log=log)
    with pytest.raises(GuestLostError, match="before its guest did"):
        final_verdict(killed)
