"""What is proven where no tracepoint can be counted: by KVM's statistics and registers. Pure.

KVM's statistics tell how many faults of a vCPU came to nothing, not of which frames. Which frame it
is, the vCPU's registers tell, sample after sample. An ordinary user gets both from his own
QEMU. What takes more than that is not proven: see :func:`why_unprovable`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hostfault.case.counting import (
    IDLE_SHARE,
    SPIN_FAILURES,
    SPIN_SAMPLES,
    baseline,
    cpu_share,
    evidence_of_faults,
    frame_is_quiet,
    may_be_the_access,
    resolved_faults,
    unresolved_faults,
)
from hostfault.case.model import Observation, Sample, Verdict, VerdictKind
from hostfault.case.words import VMM_WORDS, liveness, probe_line

PLACES = 3
"""Samples in which the registers must show the access: one alone may be its first, legal fault."""

FEW = 4
"""How many times more faults must come to nothing than come to something."""


def spin(observation: Observation) -> Verdict | None:
    """The verdict of a spin, by nothing but statistics, registers and QEMU's own memory.

    That nobody was told is taken from QEMU: it stops a virtual machine at any error of KVM_RUN
    (kvm_cpu_exec() of its accel/kvm/kvm-all.c).
    """
    first, after = baseline(observation), _after(observation)
    if first is None or not after or observation.probe.outcome is not None:
        return None
    last = after[-1]
    failed = unresolved_faults(first, last)
    if failed is None or failed < SPIN_FAILURES or failed < FEW * resolved_faults(first, last):
        return None
    if not _fails_on(first, after) or last.backed is not False or last.run_state != "running":
        return None
    places = list(_at_the_access(observation))
    busy = cpu_share(observation) >= IDLE_SHARE
    told = any(deed.gpa is not None for deed in observation.vmm_deeds) or VMM_WORDS.search(
        observation.qemu_log
    )
    if len(places) < PLACES or not busy or told:
        return None
    summary = (
        f"{failed:,} faults came to nothing in {last.at:.1f} s, and the vCPU is at {places[-1]:#x} "
        f"with gfn {observation.expected_gfn or 0:#x}, which has no page"
    )
    evidence = (
        *evidence_of_faults(observation),
        f"KVM statistics: {failed:,} faults came to nothing (all gfns)",
        f"vCPU registers: at {places[-1]:#x}, pointing into gfn {observation.expected_gfn or 0:#x} "
        f"by the guest's page tables, in {len(places)} samples",
        f"QMP query-status: {last.run_state}; QEMU stops at any error of KVM_RUN",
        probe_line(observation),
        *liveness(observation),
    )
    return Verdict(VerdictKind.SPIN, summary, evidence)


def why_unprovable(observation: Observation) -> str:
    """What the task or QEMU reports and cannot be checked without tracepoints; "" if nothing is."""
    if observation.counted_by:
        return ""
    outcome = observation.probe.outcome
    if outcome is not None and observation.terms.takes_page and frame_is_quiet(observation):
        return (
            f"the task reports {outcome.kind} {outcome.value:#x}; that the host took a fault for "
            "it takes KVM's tracepoints to prove"
        )
    if [sample.run_state for sample in _after(observation)[-2:]] == ["internal-error"] * 2:
        return "the VM stopped; that it was for this page takes KVM's tracepoints to prove"
    return ""


def why_no_stall(observation: Observation) -> str:
    """The same at the deadline, of a vCPU that does nothing at all."""
    if observation.counted_by or not observation.guest_answers:
        return ""
    if observation.probe.outcome is None and cpu_share(observation) < IDLE_SHARE:
        return "the task sleeps; that nothing faults takes KVM's tracepoints to prove"
    return ""


def _after(observation: Observation) -> list[Sample]:
    return [sample for sample in observation.samples if sample.at > 0]


def _fails_on(first: Sample, after: list[Sample]) -> bool:
    """Whether faults came to nothing between each two of the last samples."""
    growth = [unresolved_faults(*two) or 0 for two in pairwise([first, *after])]
    return len(growth) >= SPIN_SAMPLES and all(each > 0 for each in growth[-SPIN_SAMPLES:])


def _at_the_access(observation: Observation) -> Iterator[int]:
    """The instruction of each sample that found the vCPU at the access to the frame."""
    for sample in _after(observation):
        place = sample.place
        if place is None or place.points_to != observation.expected_gfn:
            continue
        known = observation.terms.by_kernel or observation.probe.rip != 0
        if known and may_be_the_access(observation, place.rip):
            yield place.rip
