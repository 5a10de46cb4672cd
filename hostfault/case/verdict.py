"""What an observation proves. Pure: no clock, no file, no process.

The rules stand in docs/verdicts.md. They are asked in the order of :data:`_RULES`: what the
host sees comes before what the guest says, so that no guest can talk a spin into an ``ok``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from dataclasses import replace

from hostfault.case import device, statistics
from hostfault.case.asleep import stall, unserved
from hostfault.case.counting import (
    IDLE_SHARE,
    SPIN_FAILURES,
    SPIN_SAMPLES,
    Attempts,
    attempts,
    attempts_between,
    cpu_share,
    evidence_of_faults,
    failed_exits,
    failing_samples,
    frame_is_quiet,
    has_faulted,
    longest_failure,
    stuck_samples,
)
from hostfault.case.model import (
    PAGE_SIZE,
    Observation,
    Outcome,
    Verdict,
    VerdictKind,
)
from hostfault.case.trouble import guest_events, killed_for_its_limit, trouble
from hostfault.case.unproven import seen
from hostfault.case.vmm import held, stopped, vmm_evidence
from hostfault.case.words import (
    GUEST_OOPS,
    HOST_COMPLAINT,
    HOST_OOPS,
    VMM_WORDS,
    errno_name,
    functions,
    how_it_ended,
    in_words,
    last_function,
    last_line,
    line_around,
    liveness,
    page_evidence,
    probe_line,
    registers_line,
    signal_name,
    telling_line,
    who,
)
from hostfault.plumbing.errors import DeadlineError, MissingCapabilityError

STUCK_SAMPLES = 50
"""Samples in a row that must find a vCPU where it was: some seconds, and longer than a thread that
may run is kept from it."""

DISK_ERROR = "BLOCK_IO_ERROR"  # QMP event: QEMU could not do what the guest's disk was asked for
UNBACKED = (-errno.EFAULT, -133)  # KVM_RUN: no page; the latter is EHWPOISON (asm-generic/errno.h)
_GOOD = (VerdictKind.OK, VerdictKind.TASK_ERROR, VerdictKind.VM_EXIT)


def judge(observation: Observation) -> Verdict | None:
    """The verdict that the observation proves so far, or None if it proves none yet."""
    if trouble(observation):
        return None  # whatever follows may be its doing
    for rule in _RULES if observation.counted_by else _RULES_WITHOUT_TRACEPOINTS:
        verdict = rule(observation)
        if verdict is not None:
            more = (*page_evidence(observation), *vmm_evidence(observation))
            return replace(verdict, evidence=(*verdict.evidence, *more))
    return None


def final_verdict(observation: Observation) -> Verdict:
    """The verdict at the observer's deadline.

    Raises :class:`DeadlineError` with what was seen if nothing is proven: time that passes
    proves nothing. Raises :class:`HostfaultError` if something broke that is not under test, and
    :class:`MissingCapabilityError` if it takes tracepoints to tell.
    """
    if broken := trouble(observation):
        raise broken
    verdict = (
        judge(observation)
        or _spin_against_the_guests_word(observation)
        or _stuck(observation)
        or stall(observation)
    )
    if verdict is not None and verdict.kind in _GOOD:
        verdict = _host_bug(observation) or _with_unread_log(observation, verdict)
    if verdict is None and (why := _unprovable(observation)):
        raise MissingCapabilityError("tracing", why)
    if verdict is None:
        raise DeadlineError(
            "proof of what became of the guest task", observation.waited, seen(observation)
        )
    return verdict


def _unprovable(observation: Observation) -> str:
    return statistics.why_unprovable(observation) or statistics.why_no_stall(observation)


def _host_bug(observation: Observation) -> Verdict | None:
    """A host's kernel that complains is no clean pass, whatever the task got."""
    said = HOST_COMPLAINT.search(observation.host_log)
    if said is None:
        return None
    line = line_around(observation.host_log, said)
    return Verdict(VerdictKind.HOST_BUG, f"the host's kernel complains: {line}", (line,))


def _with_unread_log(observation: Observation, verdict: Verdict) -> Verdict:
    """The verdict, and in its evidence whether a complaint of the host's could have been seen."""
    if observation.host_log_read:
        return verdict
    line = "the host's kernel log may not be read by this user: a complaint would not be seen"
    return replace(verdict, evidence=(*verdict.evidence, line))


def _stuck(observation: Observation) -> Verdict | None:
    """A vCPU that stays in one function of the host's kernel, and is not just halted or preempted.

    QEMU goes on to answer, statistics included: it reads those without the vCPU's help.
    """
    if observation.probe.outcome is not None or not has_faulted(observation):
        return None
    stuck = stuck_samples(observation)
    if len(stuck) < STUCK_SAMPLES:
        return None
    last, seconds = stuck[-1], stuck[-1].at - stuck[0].at
    summary = (
        f"the vCPU has not left {last_function(last.stacks[0])} in the host's kernel "
        f"for {seconds:.1f} s"
    )
    evidence = (
        f"/proc/TID/stack of the vCPU, the same in {len(stuck)} samples in a row: "
        f"{' < '.join(functions(last.stacks[0]))}",
        *evidence_of_faults(observation),
        probe_line(observation),
    )
    return Verdict(VerdictKind.VCPU_STUCK, summary, evidence)


# --- ends: the host, QEMU, the guest --------------------------------------------------------


def _host_death(observation: Observation) -> Verdict | None:
    ended = observation.host_ended
    panics = [e for e in observation.events if e.host and e.name == "GUEST_PANICKED"]
    if ended is None and not panics:
        return None
    words = ended.words if ended is not None else ""
    said = telling_line(HOST_OOPS, words or observation.host_log)
    evidence = [f"the emulated host's QEMU: event {e.name} at {e.at:.2f} s" for e in panics]
    if ended is not None:
        evidence.append(f"the host ended, its last words: {last_line(words)}")
    how = "died" if panics or HOST_OOPS.search(words) else "is gone"
    return Verdict(VerdictKind.HOST_DEATH, f"the host kernel {how}: {said}", tuple(evidence))


def _guest_death(observation: Observation) -> Verdict | None:
    evidence: list[str] = []
    for event in guest_events(observation):
        reason = str(event.data.get("reason", ""))
        by_guest = event.data.get("guest") is True or reason.startswith("guest-")
        if event.name == "GUEST_PANICKED" or (event.name in ("RESET", "SHUTDOWN") and by_guest):
            text = f"QMP event {event.name} {reason}".strip()
            evidence.append(f"{text} at {event.at:.2f} s")
    if observation.samples and observation.samples[-1].run_state == "guest-panicked":
        evidence.append("QMP query-status: guest-panicked")
    if not evidence:
        return None
    said = GUEST_OOPS.search(observation.guest_console)
    if said:  # no proof alone: any task of the guest's can write there
        evidence.append(f"guest console: {line_around(observation.guest_console, said)}")
    return Verdict(VerdictKind.GUEST_DEATH, f"the guest died: {evidence[-1]}", tuple(evidence))


def _vmm_death(observation: Observation) -> Verdict | None:
    ended = observation.qemu_ended
    if ended is None or _told_to_end(observation):
        return None
    how = how_it_ended(ended)
    words = last_line(ended.words or observation.qemu_log)
    if victim_of := killed_for_its_limit(observation):
        words = f"the host's OOM killer, for {victim_of}, whose memory cgroup is at its limit"
    evidence = (f"QEMU ended: {how}", f"its last words: {words}", probe_line(observation))
    return Verdict(VerdictKind.VMM_DEATH, f"QEMU ended with {how}: {words}", evidence)


def _told_to_end(observation: Observation) -> bool:
    """Whether QEMU says that it ended because somebody outside the guest asked it to."""
    return any(
        event.name == "SHUTDOWN" and str(event.data.get("reason", "")).startswith("host-")
        for event in guest_events(observation)
    )


def _vm_exit(observation: Observation) -> Verdict | None:
    stops = [e for e in guest_events(observation) if e.name == "STOP"]
    if not stops or not observation.samples:
        return None
    if observation.samples[-1].run_state != "internal-error":
        return None
    tie = _tie_to_the_access(observation)
    if tie is None:
        return None
    words = telling_line(VMM_WORDS, observation.qemu_log)
    evidence = [
        f"QMP event STOP at {stops[-1].at:.2f} s",
        "QMP query-status: internal-error",
        f"QEMU: {words}",
        tie,
        registers_line(observation),
        *evidence_of_faults(observation),
        probe_line(observation),
    ]
    return Verdict(VerdictKind.VM_EXIT, f"the VM stopped: {words}", tuple(evidence))


def _tie_to_the_access(observation: Observation) -> str | None:
    """What ties the exit to the access in question; None if it may be about something else.

    QEMU names the frame, or KVM_RUN failed with EFAULT after a fault on the frame. Other errors
    (ENOMEM, EIO, an instruction that KVM cannot emulate) stop a VM, too.
    """
    gfn = observation.expected_gfn
    named = re.findall(r"\b0x([0-9a-f]+)", observation.qemu_log)
    if gfn is not None and any(int(address, 16) // PAGE_SIZE == gfn for address in named):
        return f"QEMU names the frame, gfn {gfn:#x}"
    if "KVM internal error" in observation.qemu_log:
        return None  # KVM could not emulate or deliver something, at another address
    failed = failed_exits(observation)
    others = [each for each in failed if each.errno not in UNBACKED]
    if others or not failed or not has_faulted(observation):
        return None
    names = ", ".join(f"{errno_name(-each.errno)}, reason {each.reason}" for each in failed)
    return f"KVM tracepoint kvm_userspace_exit: {names}, after a fault on the frame"


def _held(observation: Observation) -> Verdict | None:
    return held(observation, UNBACKED)


def _stopped(observation: Observation) -> Verdict | None:
    return stopped(observation, UNBACKED)


# --- the access goes on: spin ------------------------------------------------------


def _spin(observation: Observation) -> Verdict | None:
    if observation.probe.outcome is not None:
        return None
    return _proven_spin(observation, anywhere=False)


def _spin_against_the_guests_word(observation: Observation) -> Verdict | None:
    """At the deadline: what the host counts, whatever outcome or place the guest has named."""
    if observation.probe.outcome:
        remark = ", though the guest reports an outcome"
    else:
        remark = f", which is not the probe's {observation.probe.rip:#x}"
    return _proven_spin(observation, anywhere=True, remark=remark)


def _proven_spin(observation: Observation, *, anywhere: bool, remark: str = "") -> Verdict | None:
    found = attempts(observation, anywhere=anywhere)
    if found is None or found.failures < SPIN_FAILURES:
        return None
    if failing_samples(observation, anywhere=anywhere) < SPIN_SAMPLES:
        return None
    last = observation.samples[-1]
    if last.run_state != "running" or _reported_to_user_space(observation):
        return None
    if last.backed is not False or not _second_source_agrees(observation, found):
        return None
    rip = found.rip or observation.probe.rip  # not known where one frame alone is counted
    summary = (
        f"{found.failures:,} failed attempts to back gfn {found.gfn:#x} in "
        f"{last.at - found.since:.1f} s, {who(observation)}{f' at {rip:#x}' if rip else ''} "
        f"never moved{remark}"
    )
    evidence = (
        *evidence_of_faults(observation, found),
        f"QMP query-status: {last.run_state}",
        "KVM tracepoint kvm_userspace_exit: no error reached QEMU",
        probe_line(observation),
        *liveness(observation),
    )
    return Verdict(VerdictKind.SPIN, summary, evidence)


def _reported_to_user_space(observation: Observation) -> bool:
    """Whether KVM told QEMU of the page: then it is QEMU that goes on, and not KVM that spins."""
    return any(each.errno in UNBACKED for each in failed_exits(observation))


def _second_source_agrees(observation: Observation, found: Attempts) -> bool:
    """Whether a source other than the tracepoints confirms that the attempts failed.

    KVM's own statistics decide where QEMU tells them: of the frame's faults at least half came to
    nothing, give or take what happened between reading the two. Otherwise the vCPU thread must
    have been busy.
    """
    if found.unresolved is not None:
        return found.unresolved >= found.faults / 2
    return cpu_share(observation) >= IDLE_SHARE


# --- the access has ended: the guest's word --------------------------------------------------


def _outcome(observation: Observation) -> Verdict | None:
    """What the task reported, once the host sees no more faults on the frame."""
    outcome = observation.probe.outcome
    if outcome is None or not frame_is_quiet(observation):
        return None
    if not _host_saw_the_access(observation):
        return None
    evidence = (
        *evidence_of_faults(observation),
        *device.evidence_of_touches(observation),
        probe_line(observation),
    )
    if spun := _spin_that_ended(observation, outcome):
        return Verdict(VerdictKind.SPIN, spun, evidence)
    match outcome.kind:
        case "value":
            return _value(observation, outcome, evidence)
        case "signal":
            return _signal(observation, outcome, evidence)
        case "errno" if outcome.value > 0:
            return Verdict(VerdictKind.TASK_ERROR, errno_name(outcome.value), evidence)
        case "end" if observation.terms.expected is None:
            summary = f"{observation.scenario.access} was told that the file ends before the page"
            return Verdict(VerdictKind.TASK_ERROR, summary, evidence)
        case "hole" if observation.terms.expected is None:
            summary = f"{observation.scenario.access} left the page out"
            return Verdict(VerdictKind.TASK_ERROR, summary, evidence)
        case _:
            return None  # not a word of the probe's language


def _spin_that_ended(observation: Observation, outcome: Outcome) -> str | None:
    """What is to be said of an access that should have been answered at the first failed attempt.

    An access that succeeds may have met a legal burst of retries: the page was there, or soon
    was. An error is due at once.
    """
    spun = attempts(observation)
    if spun is None or not observation.terms.takes_page or spun.failures < SPIN_FAILURES:
        return None
    if outcome.kind == "value" and longest_failure(observation) < SPIN_SAMPLES:
        return None
    return (
        f"spun: {spun.failures:,} failed attempts to back gfn {spun.gfn:#x}, "
        f"then the task reports {in_words(outcome)}"
    )


def _host_saw_the_access(observation: Observation) -> bool:
    """Whether the host took a fault for it, at the access, where it must.

    A page that the host takes away is unmapped from the guest (KVM's mmu notifier), so no task can
    have touched it since without one. Of a device's access QEMU tells, and what is there then; an
    error where the host has the page is the guest's own.
    """
    outcome, taken = observation.probe.outcome, observation.terms.takes_page
    if observation.terms.by_device and outcome is not None and outcome.kind != "value":
        return not taken or any(event.name == DISK_ERROR for event in guest_events(observation))
    if observation.terms.by_device:
        return outcome is not None and observation.stored_byte == outcome.value
    if not observation.terms.takes_page:
        return True
    samples = observation.samples  # from before the fault: other tasks may have fetched the page
    return attempts_between(observation, samples[0], samples[-1]) is not None


def _signal(
    observation: Observation, outcome: Outcome, evidence: tuple[str, ...]
) -> Verdict | None:
    """A task error, if it is the kernel's signal for that access and not one that was sent.

    What ties it to the access is an address in the page, its instruction, or an instruction that
    lies in the page: a guest's kernel that has no struct page for it names no address.
    """
    probe = observation.probe
    page = probe.address // PAGE_SIZE
    same_page = page in (outcome.address // PAGE_SIZE, outcome.rip // PAGE_SIZE)
    same_instruction = probe.rip != 0 and outcome.rip == probe.rip
    sent_by_a_task = outcome.code <= 0  # SI_USER and its kin: see sigaction(2)
    if sent_by_a_task or not (same_page or same_instruction):
        return None
    summary = (
        f"{signal_name(outcome.value)}, si_code {outcome.code}, si_addr {outcome.address:#x}, "
        f"at {outcome.rip:#x}"
    )
    return Verdict(VerdictKind.TASK_ERROR, summary, evidence)


def _value(observation: Observation, outcome: Outcome, evidence: tuple[str, ...]) -> Verdict | None:
    if observation.terms.writes:
        return _stored(observation, outcome, evidence)
    access = observation.scenario.access
    if observation.terms.expected == outcome.value:
        summary = f"{access} returned {outcome.value:#04x}, as it must"
        return Verdict(VerdictKind.OK, summary, evidence)
    if observation.stored_byte == outcome.value:  # then it is the fault that says otherwise
        said = f"the fault says {_expected(observation)}, and the host file holds that byte, too"
    else:
        said = f"but the host file {_holds(observation)}"
    summary = f"{access} returned {outcome.value:#04x}, {said}"
    return Verdict(VerdictKind.STALE, summary, evidence)


def _stored(
    observation: Observation, outcome: Outcome, evidence: tuple[str, ...]
) -> Verdict | None:
    held, access = observation.stored_byte, observation.scenario.access
    if held is None and observation.terms.control:
        return None  # the file is whole, so nobody has looked yet
    if held == outcome.value:
        place = "QEMU's copy of the page" if observation.page.private else "the host file"
        summary = f"{access} of {outcome.value:#04x} arrived in {place}"
        return Verdict(VerdictKind.OK, summary, evidence)
    summary = f"{access} of {outcome.value:#04x} succeeded, but the host file {_holds(observation)}"
    return Verdict(VerdictKind.STALE, summary, evidence)


def _holds(observation: Observation) -> str:
    """What the host file has at the place: what was read there, else what it must have."""
    if observation.stored_byte is not None:
        return f"holds {observation.stored_byte:#04x}"
    expected = observation.terms.expected
    if expected is None or observation.terms.writes:
        return "has no such byte"
    return f"must hold {expected:#04x}"


def _expected(observation: Observation) -> str:
    expected = observation.terms.expected
    return "that it must fail" if expected is None else f"{expected:#04x}"


_RULES: tuple[Callable[[Observation], Verdict | None], ...] = (
    _host_death,
    _guest_death,  # before vmm-death: a QEMU that ends because its guest did has not died
    _vmm_death,
    _vm_exit,
    _held,
    _stopped,
    _spin,
    device.spin,
    unserved,
    _outcome,
)

_RULES_WITHOUT_TRACEPOINTS = tuple(statistics.spin if rule is _spin else rule for rule in _RULES)
