"""What an observation proves. Pure: no clock, no file, no process.

The rules stand in docs/verdicts.md. They are asked in the order of :data:`_RULES`: what the
host sees comes before what the guest says, so that no guest can talk a spin into an ``ok``.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Callable, Iterator

from hostfault.case.counting import (
    Repetition,
    cpu_share,
    evidence_of_faults,
    frame_growth,
    frame_is_quiet,
    has_faulted,
    quiet_samples,
    repetition,
)
from hostfault.case.model import (
    PAGE_SIZE,
    Event,
    Observation,
    Outcome,
    Sample,
    Verdict,
    VerdictKind,
)
from hostfault.plumbing.errors import DeadlineError

SPIN_FAULTS = 64
"""Faults on one frame that no working KVM takes. One access needs one or two (read, upgrade to
write), a few more when a mapping changes under it; a KVM that remembers failed frames ends the
loop at the first retry. 64 is well above those, and passes in 50 ms on an emulated host."""

STALL_SAMPLES = 5
"""Samples in a row, after the last fault on the frame, that must all show nothing moving."""

IDLE_SHARE = 0.25
"""A vCPU that uses less of a core than this is idle: answering SSH in an emulated host takes some,
spinning takes 0.72 to 0.90 there, and 1.0 on hardware."""

GUEST_OOPS = re.compile(
    r"Kernel panic - not syncing|Oops: |kernel BUG at |BUG: unable to handle|"
    r"BUG: kernel NULL pointer"
)
HOST_OOPS = re.compile(GUEST_OOPS.pattern + r"|soft lockup|hung_task|rcu: INFO: .* stall")
VMM_WORDS = re.compile(
    r"kvm run failed|KVM internal error|Convert non guest_memfd|error:", re.IGNORECASE
)


def judge(observation: Observation) -> Verdict | None:
    """The verdict that the observation proves so far, or None if it proves none yet."""
    for rule in _RULES:
        verdict = rule(observation)
        if verdict is not None:
            return verdict
    return None


def final_verdict(observation: Observation) -> Verdict:
    """The verdict at the observer's deadline.

    Raises :class:`DeadlineError` with what was seen if nothing is proven: time that passes
    proves nothing.
    """
    verdict = (
        judge(observation) or _spin_against_the_guests_word(observation) or _stall(observation)
    )
    if verdict is None:
        raise DeadlineError(
            "proof of what became of the guest task", observation.waited, _seen(observation)
        )
    return verdict


# --- ends: the host, QEMU, the guest --------------------------------------------------------


def _host_death(observation: Observation) -> Verdict | None:
    ended = observation.host_ended
    panics = [e for e in observation.events if e.host and e.name == "GUEST_PANICKED"]
    if ended is None and not panics:
        return None
    words = ended.words if ended is not None else ""
    said = _telling_line(HOST_OOPS, words or observation.host_log)
    evidence = [f"the emulated host's QEMU: event {e.name} at {e.at:.2f} s" for e in panics]
    if ended is not None:
        evidence.append(f"the host ended, its last words: {_last_line(words)}")
    how = "died" if panics or HOST_OOPS.search(words) else "is gone"
    return Verdict(VerdictKind.HOST_DEATH, f"the host kernel {how}: {said}", tuple(evidence))


def _guest_death(observation: Observation) -> Verdict | None:
    evidence: list[str] = []
    for event in _guest_events(observation):
        reason = str(event.data.get("reason", ""))
        by_guest = event.data.get("guest") is True or reason.startswith("guest-")
        if event.name == "GUEST_PANICKED" or (event.name in ("RESET", "SHUTDOWN") and by_guest):
            text = f"QMP event {event.name} {reason}".strip()
            evidence.append(f"{text} at {event.at:.2f} s")
    if observation.samples and observation.samples[-1].run_state == "guest-panicked":
        evidence.append("QMP query-status: guest-panicked")
    said = GUEST_OOPS.search(observation.guest_console)
    if said:
        evidence.append(f"guest console: {_line_around(observation.guest_console, said)}")
    if not evidence:
        return None
    return Verdict(VerdictKind.GUEST_DEATH, f"the guest died: {evidence[-1]}", tuple(evidence))


def _vmm_death(observation: Observation) -> Verdict | None:
    ended = observation.qemu_ended
    if ended is None or _told_to_end(observation):
        return None
    how = f"exit code {ended.code}" if ended.signal is None else _signal_name(ended.signal)
    words = _last_line(ended.words or observation.qemu_log)
    evidence = (f"QEMU ended: {how}", f"its last words: {words}", _probe_line(observation))
    return Verdict(VerdictKind.VMM_DEATH, f"QEMU ended with {how}: {words}", evidence)


def _told_to_end(observation: Observation) -> bool:
    """Whether QEMU says that it ended because somebody outside the guest asked it to."""
    return any(
        event.name == "SHUTDOWN" and str(event.data.get("reason", "")).startswith("host-")
        for event in _guest_events(observation)
    )


def _vm_exit(observation: Observation) -> Verdict | None:
    stops = [e for e in _guest_events(observation) if e.name == "STOP"]
    if not stops or not observation.samples:
        return None
    if observation.samples[-1].run_state != "internal-error":
        return None
    if _is_another_page(observation):
        return None
    words = _telling_line(VMM_WORDS, observation.qemu_log)
    evidence = [
        f"QMP event STOP at {stops[-1].at:.2f} s",
        "QMP query-status: internal-error",
        f"QEMU: {words}",
        _registers_line(observation),
        *evidence_of_faults(observation),
        _probe_line(observation),
    ]
    return Verdict(VerdictKind.VM_EXIT, f"the VM stopped: {words}", tuple(evidence))


def _is_another_page(observation: Observation) -> bool:
    """Whether KVM gave up for a reason of its own, which says nothing about the page in question.

    KVM_EXIT_INTERNAL_ERROR (Documentation/virt/kvm/api.rst) is KVM's failure to emulate or to
    deliver an event; seen once in some hundred boots of an emulated host, at a device's address.
    """
    if "KVM internal error" not in observation.qemu_log or observation.expected_gfn is None:
        return False
    page = observation.expected_gfn * PAGE_SIZE
    addresses = re.findall(r"extra data\[\d+\]: 0x([0-9a-f]+)", observation.qemu_log)
    return all(int(address, 16) // PAGE_SIZE * PAGE_SIZE != page for address in addresses)


def _guest_events(observation: Observation) -> Iterator[Event]:
    """Events of the guest's QEMU since the first sample, which is from before the fault."""
    since = observation.samples[0].at if observation.samples else 0.0
    return (e for e in observation.events if not e.host and e.at >= since)


# --- the access goes on: spin and stall ------------------------------------------------------


def _spin(observation: Observation) -> Verdict | None:
    if observation.probe.outcome is not None:
        return None
    return _proven_spin(observation, repetition(observation))


def _spin_against_the_guests_word(observation: Observation) -> Verdict | None:
    """At the deadline: what the host counts, whatever outcome or place the guest has named."""
    remark = ", though the guest reports an outcome" if observation.probe.outcome else ""
    found = repetition(observation, anywhere=True)
    if found is not None and not remark:
        remark = f", which is not the probe's {observation.probe.rip:#x}"
    return _proven_spin(observation, found, remark)


def _proven_spin(
    observation: Observation, found: Repetition | None, remark: str = ""
) -> Verdict | None:
    if found is None or found.count < SPIN_FAULTS or not found.going_on:
        return None
    last = observation.samples[-1]
    if last.run_state != "running" or not _second_source_agrees(observation, found):
        return None
    summary = (
        f"{found.count:,} faults on gfn {found.gfn:#x} in {last.at - found.since:.1f} s, "
        f"{_who(observation)} at {found.rip or observation.probe.rip:#x} never moved{remark}"
    )
    evidence = (
        *evidence_of_faults(observation, found),
        f"QMP query-status: {last.run_state}",
        _probe_line(observation),
        *_liveness(observation),
    )
    return Verdict(VerdictKind.SPIN, summary, evidence)


def _who(observation: Observation) -> str:
    return "the guest's kernel" if observation.terms.by_kernel else "task"


def _second_source_agrees(observation: Observation, found: Repetition) -> bool:
    """Whether a source other than the tracepoint confirms the count.

    KVM's own statistics decide where QEMU tells them: they count every fault of the vCPU, so at
    least the frame's, give or take what happened between reading the two. Otherwise the vCPU
    thread must have been busy.
    """
    if found.pf_taken is not None:
        return found.pf_taken >= found.count / 2
    return cpu_share(observation) >= IDLE_SHARE


def _stall(observation: Observation) -> Verdict | None:
    quiet = quiet_samples(observation)
    if observation.probe.outcome is not None or len(quiet) < STALL_SAMPLES:
        return None
    share = cpu_share(observation, quiet)
    running = all(sample.run_state == "running" for sample in quiet)
    if share >= IDLE_SHARE or not observation.guest_answers or not running:
        return None
    if observation.probe.ended:
        return None  # whoever is gone does not sleep
    seconds = quiet[-1].at - quiet[0].at
    summary = (
        f"no fault and no progress in {seconds:.1f} s, task at {observation.probe.rip:#x} asleep"
    )
    evidence = (
        f"KVM tracepoint kvm_page_fault: none on the frame in the last {len(quiet)} samples",
        f"vCPU threads: {share:.0%} of a core in those {seconds:.1f} s",
        "QMP query-status: running",
        _probe_line(observation),
        "guest: answers over SSH",
    )
    return Verdict(VerdictKind.STALL, summary, evidence)


# --- the access has ended: the guest's word --------------------------------------------------


def _outcome(observation: Observation) -> Verdict | None:
    """What the task reported, once the host sees no more faults on the frame."""
    outcome = observation.probe.outcome
    if outcome is None or not frame_is_quiet(observation):
        return None
    evidence = (*evidence_of_faults(observation), _probe_line(observation))
    match outcome.kind:
        case "value":
            return _value(observation, outcome, evidence)
        case "signal" if _host_saw_the_access(observation):
            return _signal(observation, outcome, evidence)
        case "errno" if outcome.value > 0 and _host_saw_the_access(observation):
            return Verdict(VerdictKind.TASK_ERROR, _errno_name(outcome.value), evidence)
        case "end" if observation.terms.expected is None:
            summary = f"{observation.scenario.access} was told that the file ends before the page"
            return Verdict(VerdictKind.TASK_ERROR, summary, evidence)
        case _:
            return None  # not a word of the probe's language


def _host_saw_the_access(observation: Observation) -> bool:
    """Whether the host took a fault for it, where it must.

    Truncation takes the page out of the guest (KVM's mmu notifier), so no task can have touched
    it since without one.
    """
    return not observation.terms.takes_page or has_faulted(observation)


def _signal(
    observation: Observation, outcome: Outcome, evidence: tuple[str, ...]
) -> Verdict | None:
    """A task error, if it is the kernel's signal for that access and not one that was sent."""
    probe = observation.probe
    same_page = outcome.address // PAGE_SIZE == probe.address // PAGE_SIZE
    same_instruction = probe.rip != 0 and outcome.rip == probe.rip
    sent_by_a_task = outcome.code <= 0  # SI_USER and its kin: see sigaction(2)
    if sent_by_a_task or not (same_page or same_instruction):
        return None
    summary = (
        f"{_signal_name(outcome.value)}, si_code {outcome.code}, si_addr {outcome.address:#x}, "
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
    summary = f"{access} returned {outcome.value:#04x}, but the host file {_holds(observation)}"
    return Verdict(VerdictKind.STALE, summary, evidence)


def _stored(
    observation: Observation, outcome: Outcome, evidence: tuple[str, ...]
) -> Verdict | None:
    held, access = observation.stored_byte, observation.scenario.access
    if held is None and observation.terms.control:
        return None  # the file is whole, so nobody has looked yet
    if held == outcome.value:
        summary = f"{access} of {outcome.value:#04x} arrived in the host file"
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


# --- words -----------------------------------------------------------------------------------


def _probe_line(observation: Observation) -> str:
    outcome = observation.probe.outcome
    last = observation.probe.steps[-1] if observation.probe.steps else "nothing"
    if outcome is None:
        gone = ", and it is gone" if observation.probe.ended else ""
        return f"probe: no outcome, last step: {last}{gone}"
    return f"probe: {outcome.kind} {outcome.value:#x}, last step: {last}"


def _registers_line(observation: Observation) -> str:
    found = re.search(r"\b[RE]IP=([0-9a-f]+)", observation.registers + observation.qemu_log)
    if found is None:
        return "vCPU registers: not told"
    rip = int(found[1], 16)
    whose = "the probe's instruction" if rip == observation.probe.rip else "not the probe's"
    return f"vCPU registers: rip {rip:#x}, {whose}"


def _liveness(observation: Observation) -> Iterator[str]:
    if observation.guest_answers is not None:
        yield f"guest: {'answers' if observation.guest_answers else 'does not answer'} over SSH"


def _seen(observation: Observation) -> str:
    """Everything that bears on the question, for the error that answers none."""
    last: Sample | None = observation.samples[-1] if observation.samples else None
    parts = [_probe_line(observation)]
    if last is not None:
        parts.append(f"run state {last.run_state or 'unknown'}")
        parts.append(f"vCPU threads at {cpu_share(observation):.0%} of a core")
    growth = sorted(frame_growth(observation), key=lambda f: f.count, reverse=True)[:3]
    if not growth:
        parts.append("no fault at all on the host (does it count in another PID namespace?)")
    parts += [f"{f.count:,} faults on gfn {f.gfn:#x} from rip {f.rip:#x}" for f in growth]
    if observation.expected_gfn is not None:
        parts.append(f"expected gfn {observation.expected_gfn:#x}")
    parts += _liveness(observation)
    parts += [f"event {event.name}" for event in _guest_events(observation)]
    if observation.qemu_ended is not None:
        parts.append("QEMU was told to end")
    return "; ".join(parts)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _errno_name(number: int) -> str:
    return f"errno {number} ({errno.errorcode.get(number, 'unknown')})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing)"


def _telling_line(pattern: re.Pattern[str], text: str) -> str:
    """The first line that the pattern knows, else the last one."""
    found = pattern.search(text)
    return _line_around(text, found) if found else _last_line(text)


def _line_around(text: str, found: re.Match[str]) -> str:
    start = text.rfind("\n", 0, found.start()) + 1
    return text[start:].splitlines()[0].strip()


_RULES: tuple[Callable[[Observation], Verdict | None], ...] = (
    _host_death,
    _guest_death,  # before vmm-death: a QEMU that ends because its guest did has not died
    _vmm_death,
    _vm_exit,
    _spin,
    _outcome,
)
