"""Counts since the touch, read out of an observation's samples. Pure.

All counters of a sample have been growing since long before the touch, so only differences to
the last sample from before it (the baseline) mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hostfault.case.model import FrameFaults, Observation, Sample

KERNEL_SPACE = 1 << 63
"""The first address of the guest's kernel (Linux Documentation/arch/x86/x86_64/mm.rst)."""


@dataclass(frozen=True)
class Repetition:
    """One guest frame that faults from one instruction alone."""

    gfn: int
    rip: int  # 0 where the tracepoint does not tell
    count: int  # faults since ``since``
    recent: int  # of these, since the sample before the last
    pf_taken: int | None  # all faults in that time by KVM's statistics; None: not told
    since: float  # seconds since the touch, 0 where that is when it began

    @property
    def going_on(self) -> bool:
        """Whether it still faulted when last seen."""
        return self.recent > 0


def baseline(observation: Observation) -> Sample | None:
    """The last sample from before the touch."""
    before = [sample for sample in observation.samples if sample.at <= 0]
    return before[-1] if before else None


def frame_growth(observation: Observation) -> tuple[FrameFaults, ...]:
    """Faults by frame and instruction since the touch; nothing without a baseline."""
    first = baseline(observation)
    if first is None:
        return ()
    return _growth(first, observation.samples[-1])


def repetition(observation: Observation, *, anywhere: bool = False) -> Repetition | None:
    """The frame that repeats: the expected one, else the one that repeats most.

    Only a frame all of whose faults come from one instruction counts: faults from two places
    are a task that moves. It must be the instruction that the probe named, unless ``anywhere``.
    Counted is from the touch on, or from the first sample after which no other place meddled.
    """
    first = baseline(observation)
    if first is None:
        return None
    starts = [first, *(sample for sample in observation.samples[:-1] if sample.at > 0)]
    found = (_repetition_since(observation, start, anywhere=anywhere) for start in starts)
    return next((each for each in found if each is not None), None)


def _repetition_since(
    observation: Observation, start: Sample, *, anywhere: bool
) -> Repetition | None:
    by_frame: dict[int, list[FrameFaults]] = {}
    for growth in _growth(start, observation.samples[-1]):
        by_frame.setdefault(growth.gfn, []).append(growth)
    expected = observation.expected_gfn
    standing = [
        faults[0]
        for gfn, faults in by_frame.items()
        if expected in (None, gfn)
        and len(faults) == 1
        and (anywhere or faults[0].rip == 0 or _may_be_the_access(observation, faults[0].rip))
    ]
    if not standing:
        return None
    most = max(standing, key=lambda growth: growth.count)
    recent = sum(
        growth.count
        for growth in _growth(observation.samples[-2], observation.samples[-1])
        if growth.gfn == most.gfn
    )
    taken = _stat_growth(start, observation.samples[-1], "pf_taken")
    return Repetition(most.gfn, most.rip, most.count, recent, taken, max(0.0, start.at))


def _may_be_the_access(observation: Observation, rip: int) -> bool:
    """Whether that is the probe's instruction; for a system call, any of the guest's kernel."""
    if observation.terms.by_kernel:
        return rip >= KERNEL_SPACE
    return observation.probe.rip in (0, rip)


def _stat_growth(earlier: Sample, later: Sample, name: str) -> int | None:
    """Growth of one of KVM's vCPU statistics; None if it was not told."""
    if name not in earlier.vcpu_stats or name not in later.vcpu_stats:
        return None
    return later.vcpu_stats[name] - earlier.vcpu_stats[name]


def cpu_share(observation: Observation, window: Sequence[Sample] = ()) -> float:
    """Cores that the vCPU threads used in the samples of a window: 1.0 is one busy core.

    Without a window: since the touch where two samples are, else since the baseline.
    """
    after = [sample for sample in observation.samples if sample.at > 0]
    window = window or (after if len(after) > 1 else observation.samples[-2:])
    if len(window) < 2 or window[-1].at <= window[0].at:
        return 0.0
    return (window[-1].vcpu_seconds - window[0].vcpu_seconds) / (window[-1].at - window[0].at)


def frame_is_quiet(observation: Observation) -> bool:
    """Whether the touched frame took no fault between the last two samples, one after the touch."""
    samples = observation.samples
    if len(samples) < 2 or samples[-1].at <= 0:
        return False
    return not _frame_faults(observation, samples[-2], samples[-1])


def quiet_samples(observation: Observation) -> tuple[Sample, ...]:
    """The samples after the touch, from the last backwards, without a fault on the frame."""
    quiet: list[Sample] = []
    for sample in reversed([s for s in observation.samples if s.at > 0]):
        if quiet and _frame_faults(observation, sample, quiet[-1]):
            break
        quiet.append(sample)
    return tuple(reversed(quiet))


def has_faulted(observation: Observation) -> bool:
    """Whether the touched frame, or any where it is not known, took a fault since the touch."""
    first = baseline(observation)
    return first is not None and _frame_faults(observation, first, observation.samples[-1]) > 0


def evidence_of_faults(
    observation: Observation, found: Repetition | None = None
) -> tuple[str, ...]:
    """One line for each source that counts faults, or work, since the touch."""
    first = baseline(observation)
    if first is None:
        return ()
    return tuple(_evidence(observation, first, observation.samples[-1], found))


def _evidence(
    observation: Observation, first: Sample, last: Sample, found: Repetition | None
) -> Iterator[str]:
    gfn = found.gfn if found else observation.expected_gfn
    if gfn is not None:
        count = sum(growth.count for growth in _growth(first, last) if growth.gfn == gfn)
        place = (
            f", {found.count:,} from rip {found.rip:#x} alone, {found.recent:,} of them lately"
            if found
            else ""
        )
        yield f"KVM tracepoint kvm_page_fault: {count:,} faults on gfn {gfn:#x}{place}"
        started = last.async_started.get(gfn, 0) - first.async_started.get(gfn, 0)
        ready = last.async_ready - first.async_ready
        yield (
            f"KVM tracepoint kvm_try_async_get_page: {started:,} asynchronous faults on it, "
            f"{ready:,} pages ready (kvm_async_pf_ready)"
        )
    names = ("pf_taken", "pf_guest", "pf_fixed", "exits")
    told = [(name, _stat_growth(first, last, name)) for name in names]
    words = [f"{name} +{grown:,}" for name, grown in told if grown is not None]
    if words:
        yield f"QMP query-stats of the vCPUs: {', '.join(words)}"
    used = last.vcpu_seconds - first.vcpu_seconds
    yield f"vCPU threads: {used:.2f} s of CPU time in {last.at - first.at:.2f} s"


def _frame_faults(observation: Observation, earlier: Sample, later: Sample) -> int:
    """Faults between two samples on the expected frame, else from the probe's instruction."""
    expected, rip = observation.expected_gfn, observation.probe.rip
    return sum(
        growth.count
        for growth in _growth(earlier, later)
        if (growth.rip == rip if expected is None else growth.gfn == expected)
    )


def _growth(earlier: Sample, later: Sample) -> tuple[FrameFaults, ...]:
    before = {(fault.gfn, fault.rip): fault.count for fault in earlier.faults}
    grown = (
        FrameFaults(fault.gfn, fault.rip, fault.count - before.get((fault.gfn, fault.rip), 0))
        for fault in later.faults
    )
    return tuple(growth for growth in grown if growth.count > 0)
