"""What a VMM policy did (images/vmm-policy, images/qemu), as far as verdicts go. Pure.

The library's log, and QEMU's event, are a second source only: what counts is that KVM told user
space, which the tracepoint kvm_userspace_exit shows, and what became of the task.
"""

from __future__ import annotations

from collections.abc import Iterator

from hostfault.case.counting import evidence_of_faults, failed_exits, has_faulted
from hostfault.case.model import (
    PAGE_SIZE,
    STOCK,
    Event,
    Observation,
    Verdict,
    VerdictKind,
    VmmDeed,
)
from hostfault.case.words import errno_name, liveness, probe_line

EVENT = "MEMORY_UNBACKED"  # of a QEMU with images/qemu/patches/on-unbacked

HOLD_TRIES = 4
"""Exits for one page after which a vCPU counts as kept out of the guest: the policy makes a longer
pause after each, and a page that comes back at once needs one or two."""


def was_injected(observation: Observation) -> bool:
    """Whether the guest got a machine check."""
    by_library = any(deed.did == "injected" for deed in observation.vmm_deeds)
    return by_library or any(each.data.get("action") == "mce" for each in _unbacked(observation))


def stopped(observation: Observation, unbacked: tuple[int, ...]) -> Verdict | None:
    """KVM told user space, and QEMU stopped the VM as its memory backend says.

    ``unbacked`` are the errors of KVM_RUN that say so.
    """
    if not observation.samples or observation.samples[-1].run_state != "io-error":
        return None
    told = [each for each in _unbacked(observation) if _is_a_stop(each, observation)]
    failed = failed_exits(observation)
    if not told or any(each.errno not in unbacked for each in failed):
        return None
    if observation.counted_by and not (failed and has_faulted(observation)):
        return None
    names = [f"{each.count:,} times {errno_name(-each.errno)}" for each in failed]
    summary = (
        f"QEMU stopped the VM, which may be resumed: its {told[-1].data.get('memory-backend')} "
        f"has no page for gfn {observation.expected_gfn or 0:#x}"
    )
    evidence = (
        f"QMP event {EVENT} at {told[-1].at:.2f} s: {_event_in_words(told[-1])}",
        "QMP query-status: io-error",
        *(f"KVM tracepoint kvm_userspace_exit: {each}" for each in names),
        *evidence_of_faults(observation),
        probe_line(observation),
    )
    return Verdict(VerdictKind.VM_EXIT, summary, evidence)


def _unbacked(observation: Observation) -> Iterator[Event]:
    """QEMU's events of pages that the host cannot back."""
    return (each for each in observation.events if not each.host and each.name == EVENT)


def _is_a_stop(event: Event, observation: Observation) -> bool:
    gpa = event.data.get("guest-physical-address")
    on_the_page = type(gpa) is int and gpa // PAGE_SIZE == observation.expected_gfn
    return on_the_page and event.data.get("action") == "stop"


def _event_in_words(event: Event) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(event.data.items()))


def held(observation: Observation, unbacked: tuple[int, ...]) -> Verdict | None:
    """KVM told user space, again and again, and that keeps the vCPU out of the guest.

    ``unbacked`` are the errors of KVM_RUN that say so.
    """
    if observation.probe.outcome is not None or not observation.samples:
        return None
    last, tries = observation.samples[-1], _tries(observation)
    if tries < HOLD_TRIES or last.run_state != "running" or last.backed is True:
        return None
    failed = failed_exits(observation)
    told = sum(each.count for each in failed if each.errno in unbacked)
    if told < HOLD_TRIES or not has_faulted(observation):
        return None
    if any(each.errno not in unbacked for each in failed):
        return None
    names = ", ".join(f"{each.count:,} times {errno_name(-each.errno)}" for each in failed)
    gfn = observation.expected_gfn or 0
    summary = f"KVM told user space of gfn {gfn:#x}, and that keeps the vCPU out of the guest"
    evidence = (
        f"KVM tracepoint kvm_userspace_exit: {names}",
        *evidence_of_faults(observation),
        "QMP query-status: running",
        probe_line(observation),
        *liveness(observation),
    )
    return Verdict(VerdictKind.VM_EXIT, summary, evidence)


def _tries(observation: Observation) -> int:
    """How often the vCPU has tried in vain to get past the page, since it was last let go."""
    tries = 0
    for deed in observation.vmm_deeds:
        if deed.gpa is None or deed.gpa // PAGE_SIZE != observation.expected_gfn:
            continue
        if deed.did == "released":
            tries = 0
        elif deed.did == "held":
            tries = deed.tries
    return tries


def vmm_evidence(observation: Observation) -> Iterator[str]:
    """One line for the policy, and one for the last thing of each kind that it did."""
    if observation.vmm_policy == STOCK:
        return
    last = {deed.did: deed for deed in observation.vmm_deeds if deed.gpa is not None}
    events = list(_unbacked(observation))
    words = [_in_words(deed) for deed in last.values()]
    words += [f"{len(events):,} events, the last one: {_event_in_words(e)}" for e in events[-1:]]
    said = "; ".join(words) or "nothing to do"
    yield f"VMM policy {observation.vmm_policy}: {said}"


def _in_words(deed: VmmDeed) -> str:
    kinds = [name for bit, name in ((1, "read"), (2, "write"), (4, "exec")) if deed.flags & bit]
    kind = f" ({', '.join(kinds)})" if kinds else ""
    tries = f", {deed.tries:,} tries" if deed.tries else ""
    words = f", {deed.words}" if deed.words else ""
    return f"{deed.did} {deed.number:,}, the last one at {deed.gpa:#x}{kind}{tries}{words}"
