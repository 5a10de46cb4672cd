"""What an observation proves of an access by a device of the guest's. Pure.

KVM sees nothing of it: the host's kernel copies from or to QEMU's address of the page, for QEMU or
for a vhost worker. It takes a page fault there each time that it finds no page.
"""

from __future__ import annotations

from itertools import pairwise

from hostfault.case.counting import IDLE_SHARE, SPIN_FAILURES, SPIN_SAMPLES, baseline
from hostfault.case.model import Observation, Sample, Verdict, VerdictKind
from hostfault.case.words import liveness, probe_line


def spin(observation: Observation) -> Verdict | None:
    """The host's kernel tries again and again, and neither the guest nor QEMU is told."""
    first, after = baseline(observation), _after(observation)
    if not observation.terms.by_device or observation.probe.outcome is not None:
        return None
    if first is None or len(after) < SPIN_SAMPLES:
        return None
    last, failures = after[-1], _touches(first, after[-1])
    recent = list(pairwise([first, *after]))[-SPIN_SAMPLES:]
    if failures < SPIN_FAILURES or not all(_touches(*two) for two in recent):
        return None
    share = worker_share(observation)
    if last.run_state != "running" or last.backed is not False or share < IDLE_SHARE:
        return None
    summary = (
        f"{failures:,} page faults of the host's kernel at QEMU's address of gfn "
        f"{observation.expected_gfn or 0:#x} in {last.at:.1f} s, for a device of the guest's"
    )
    evidence = (
        *evidence_of_touches(observation),
        "/proc/PID/mem: QEMU's own address of the page cannot be read: there is no page",
        f"QMP query-status: {last.run_state}",
        probe_line(observation),
        *liveness(observation),
    )
    return Verdict(VerdictKind.SPIN, summary, evidence)


def worker_share(observation: Observation) -> float:
    """Cores that vhost workers used in the samples since the touch: 1.0 is one busy core."""
    after = _after(observation)
    if len(after) < 2 or after[-1].at <= after[0].at:
        return 0.0
    return (after[-1].worker_seconds - after[0].worker_seconds) / (after[-1].at - after[0].at)


def evidence_of_touches(observation: Observation) -> tuple[str, ...]:
    """A line for each source that tells of the host's kernel at work for a device."""
    first, after = baseline(observation), _after(observation)
    if first is None or not after or after[-1].touches is None:
        return ()
    last = after[-1]
    return (
        f"tracepoint page_fault_kernel: {_touches(first, last):,} page faults of the host's kernel "
        "at QEMU's address of the page",
        f"vhost workers: {last.worker_seconds - first.worker_seconds:.2f} s of CPU time in "
        f"{last.at - first.at:.2f} s",
    )


def _after(observation: Observation) -> list[Sample]:
    return [sample for sample in observation.samples if sample.at > 0]


def _touches(earlier: Sample, later: Sample) -> int:
    return (later.touches or 0) - (earlier.touches or 0)
