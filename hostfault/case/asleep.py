"""What an observation proves of an access that sleeps: a stall. Pure."""

from __future__ import annotations

from hostfault.case.counting import (
    IDLE_SHARE,
    attempts,
    cpu_share,
    evidence_of_faults,
    failing_samples,
    longest_gap,
    quiet_samples,
    waits_for_the_host,
)
from hostfault.case.device import evidence_of_touches
from hostfault.case.model import Observation, Verdict, VerdictKind
from hostfault.case.words import liveness, probe_line, who

STALL_GAPS = 4
"""How many times the longest gap between two faults a quiet time must last to be no gap."""

STALL_SAMPLES = 5
"""Samples in a row, after the last fault on the frame, that must all show nothing moving."""


def unserved(observation: Observation) -> Verdict | None:
    """The host's page fault waits for a server that was stopped: that has no end by itself.

    The kernel says so (fdinfo of the userfaultfd), so no deadline is needed.
    """
    waiting = [sample for sample in observation.samples if sample.at > 0][-STALL_SAMPLES:]
    last = observation.samples[-1] if observation.samples else None
    if observation.probe.outcome is not None or len(waiting) < STALL_SAMPLES or last is None:
        return None
    if not all(sample.unanswered and sample.run_state == "running" for sample in waiting):
        return None
    if not _went_for_the_page(observation) or failing_samples(observation):
        return None
    summary = (
        f"a userfaultfd's server does not answer, and page faults that wait: {last.unanswered}; "
        f"{who(observation)} at {observation.probe.rip:#x} asleep for {last.at:.1f} s"
    )
    evidence = (
        f"userfaultfd of QEMU's memory: {last.unanswered} unanswered, in {len(waiting)} samples",
        *evidence_of_faults(observation),
        "QMP query-status: running",
        probe_line(observation),
        *liveness(observation),
    )
    return Verdict(VerdictKind.STALL, summary, evidence)


def stall(observation: Observation) -> Verdict | None:
    """Nothing faults and nothing moves, though all goes on living; asked at the deadline."""
    quiet = quiet_samples(observation) if observation.counted_by else ()
    if observation.probe.outcome is not None or len(quiet) < STALL_SAMPLES:
        return None
    if not _went_for_the_page(observation) or waits_for_the_host(observation):
        return None  # it has not touched, or the host is still at it: it may yet come back
    if quiet[-1].at - quiet[0].at < STALL_GAPS * longest_gap(observation):
        return None  # attempts that fail now and then, and this may be a pause between two
    share = cpu_share(observation, quiet)
    running = all(sample.run_state == "running" for sample in quiet)
    if share >= IDLE_SHARE or not observation.guest_answers or not running:
        return None
    if observation.probe.ended:
        return None  # whoever is gone does not sleep
    seconds = quiet[-1].at - quiet[0].at
    summary = (
        f"no fault and no progress in {seconds:.1f} s, "
        f"{who(observation)} at {observation.probe.rip:#x} asleep"
    )
    evidence = (
        f"KVM tracepoint kvm_page_fault: none on the frame in the last {len(quiet)} samples",
        f"vCPU threads: {share:.0%} of a core in those {seconds:.1f} s",
        *evidence_of_touches(observation),
        "QMP query-status: running",
        probe_line(observation),
        "guest: answers over SSH",
    )
    return Verdict(VerdictKind.STALL, summary, evidence)


def _went_for_the_page(observation: Observation) -> bool:
    """Whether the probe said that it touches, and the host saw it do so.

    A task without a fault on the page waits for something else, for a lock of its kernel's, say.
    """
    touching = any('"touching"' in step for step in observation.probe.steps)
    return touching and (observation.terms.by_device or attempts(observation) is not None)
