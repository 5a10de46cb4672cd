"""What a VMM policy did (images/vmm-policy), as far as verdicts go. Pure.

Its log is a second source only: what counts is that KVM told user space, which the tracepoint
kvm_userspace_exit shows, and what became of the task.
"""

from __future__ import annotations

from collections.abc import Iterator

from hostfault.case.counting import evidence_of_faults, failed_exits, has_faulted
from hostfault.case.model import (
    PAGE_SIZE,
    STOCK,
    Observation,
    Verdict,
    VerdictKind,
    VmmDeed,
)
from hostfault.case.words import errno_name, liveness, probe_line

HOLD_TRIES = 4
"""Exits for one page after which a vCPU counts as kept out of the guest: the policy makes a longer
pause after each, and a page that comes back at once needs one or two."""


def was_injected(observation: Observation) -> bool:
    """Whether the guest got a machine check."""
    return any(deed.did == "injected" for deed in observation.vmm_deeds)


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
    said = "; ".join(_in_words(deed) for deed in last.values()) or "nothing to do"
    yield f"VMM policy {observation.vmm_policy}: {said}"


def _in_words(deed: VmmDeed) -> str:
    kinds = [name for bit, name in ((1, "read"), (2, "write"), (4, "exec")) if deed.flags & bit]
    kind = f" ({', '.join(kinds)})" if kinds else ""
    tries = f", {deed.tries:,} tries" if deed.tries else ""
    words = f", {deed.words}" if deed.words else ""
    return f"{deed.did} {deed.number:,}, the last one at {deed.gpa:#x}{kind}{tries}{words}"
