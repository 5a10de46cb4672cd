"""Counts since the touch, read out of an observation's samples. Pure.

All counters of a sample have been growing since long before the touch, so only differences to
the last sample from before it (the baseline) mean anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from errno import EAGAIN, EINTR
from itertools import groupby, pairwise

from hostfault.case.model import FrameFaults, Observation, Sample, UserspaceExit
from hostfault.case.words import functions

KERNEL_SPACE = 1 << 63
"""The first address of the guest's kernel (Linux Documentation/arch/x86/x86_64/mm.rst)."""

SPIN_FAILURES = 64
"""Failed attempts to back one frame that no working KVM makes. One access needs one or two (read,
upgrade to write), a few more when a mapping changes under it; a KVM that remembers failed frames
ends the loop at the first retry. 64 is well above those, and passes in 50 ms on an emulated
host."""

SPIN_SAMPLES = 3
"""Samples in a row in which attempts must fail: longer than any legal burst of retries (an MMU
notifier in progress, a memslot that is being moved)."""

IDLE_SHARE = 0.25
"""A vCPU that uses less of a core than this is idle: answering SSH in an emulated host takes some,
spinning takes 0.72 to 0.90 there, and 1.0 on hardware."""

RESOLVED = ("pf_fixed", "pf_spurious", "pf_emulate", "pf_fast")
"""KVM's statistics of faults that came to something (arch/x86/include/asm/kvm_host.h)."""


RESTING = ("kvm_vcpu_halt", "kvm_vcpu_block", "xfer_to_guest_mode")
"""Where a vCPU that is well waits: for an interrupt (virt/kvm/kvm_main.c), or for its turn on a
processor (kernel/entry/virt.c)."""


@dataclass(frozen=True)
class Attempts:
    """Attempts to back one guest frame for one access, since a sample."""

    gfn: int
    rip: int  # of the access; 0 where the tracepoint does not tell
    faults: int  # kvm_page_fault on the frame from there
    failed_async: int  # kvm_async_pf_ready of the frame: fetched, and yet it faults again
    async_started: int  # kvm_try_async_get_page of the frame
    unresolved: int | None  # by KVM's statistics, of all frames; None: not told
    since: float  # seconds since the touch, 0 where that is when it began
    nested: bool = False  # see Terms

    @property
    def failures(self) -> int:
        """Failed attempts: asynchronous ones by frame where there are some, else faults.

        A fault of the guest's guest may be one that KVM hands on to the guest's own KVM. Those that
        it goes for itself are asynchronous, of a frame that it has found by itself.
        """
        if self.nested:
            return min(self.failed_async, self.async_started)
        return self.failed_async if self.async_started else self.faults


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


def attempts(observation: Observation, *, anywhere: bool = False) -> Attempts | None:
    """Attempts to back the frame of the access, since the touch.

    It is the expected frame, else the one that repeats most. Only faults at the access count:
    another task may touch the page, too. ``anywhere`` takes the instruction that repeats most.
    """
    first = baseline(observation)
    if first is None:
        return None
    return attempts_between(observation, first, observation.samples[-1], anywhere=anywhere)


def attempts_between(
    observation: Observation, start: Sample, end: Sample, *, anywhere: bool = False
) -> Attempts | None:
    """The same between two samples."""
    expected = observation.expected_gfn
    at_the_access = [
        growth
        for growth in _growth(start, end)
        if expected in (None, growth.gfn)
        and (anywhere or growth.rip == 0 or may_be_the_access(observation, growth.rip))
    ]
    if not at_the_access:
        return None
    most = max(at_the_access, key=lambda growth: growth.count)
    return Attempts(
        gfn=most.gfn,
        rip=most.rip,
        faults=most.count,
        failed_async=_grown(start.async_ready, end.async_ready, most.gfn),
        async_started=_grown(start.async_started, end.async_started, most.gfn),
        unresolved=unresolved_faults(start, end),
        since=max(0.0, start.at),
        nested=observation.terms.nested,
    )


def failing_samples(observation: Observation, *, anywhere: bool = False) -> int:
    """How many samples in a row, up to the last, each saw failed attempts since the one before.

    Those before the touch do not count, nor does one that found the page backed.
    """
    failing = _failing(observation, anywhere=anywhere)
    return next((at for at, failed in enumerate(reversed(failing)) if not failed), len(failing))


def longest_failure(observation: Observation) -> int:
    """The same of the longest row of such samples, wherever it ended."""
    rows = groupby(_failing(observation, anywhere=False))
    return max((len(list(row)) for failed, row in rows if failed), default=0)


def _failing(observation: Observation, *, anywhere: bool) -> list[bool]:
    """Whether attempts failed up to each sample after the touch; nothing without a baseline."""
    first = baseline(observation)
    samples = [sample for sample in observation.samples if sample.at > 0]
    if first is None:
        return []

    def failed(earlier: Sample, later: Sample) -> bool:
        found = attempts_between(observation, earlier, later, anywhere=anywhere)
        return found is not None and found.failures > 0 and later.backed is not True

    return [failed(earlier, later) for earlier, later in pairwise([first, *samples])]


def longest_gap(observation: Observation) -> float:
    """Seconds of the longest time between two faults on the frame, as the samples show them."""
    after = [sample for sample in observation.samples if sample.at > 0]
    last, longest = 0.0, 0.0
    for earlier, later in pairwise(after):
        if _frame_faults(observation, earlier, later):
            longest = max(longest, later.at - last)
            last = later.at
    return longest


def waits_for_the_host(observation: Observation) -> bool:
    """Whether the host has begun to fetch the frame and has not come back."""
    first, gfn = baseline(observation), observation.expected_gfn
    if first is None or gfn is None:
        return False
    last = observation.samples[-1]
    started = _grown(first.async_started, last.async_started, gfn)
    return started > _grown(first.async_ready, last.async_ready, gfn)


def failed_exits(observation: Observation) -> tuple[UserspaceExit, ...]:
    """Returns of KVM_RUN with an error since before the fault."""
    if not observation.samples:
        return ()
    before = {(each.reason, each.errno): each.count for each in observation.samples[0].exits}
    return tuple(
        dataclasses.replace(each, count=each.count - before.get((each.reason, each.errno), 0))
        for each in observation.samples[-1].exits
        if each.errno not in (0, -EINTR, -EAGAIN)
        and each.count > before.get((each.reason, each.errno), 0)
    )


def _grown(earlier: Mapping[int, int], later: Mapping[int, int], gfn: int) -> int:
    return later.get(gfn, 0) - earlier.get(gfn, 0)


def unresolved_faults(start: Sample, end: Sample) -> int | None:
    """Faults that came to nothing, by KVM's statistics; None if it does not tell them."""
    taken = _stat_growth(start, end, "pf_taken")
    return None if taken is None else taken - resolved_faults(start, end)


def resolved_faults(start: Sample, end: Sample) -> int:
    """Faults that came to something, by KVM's statistics."""
    return sum(_stat_growth(start, end, name) or 0 for name in RESOLVED)


def may_be_the_access(observation: Observation, rip: int) -> bool:
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
    """Whether the touched frame took no fault between the last two samples, one after the touch.

    Without tracepoints: whether no fault came to nothing, of whatever frame.
    """
    samples = observation.samples
    if len(samples) < 2 or samples[-1].at <= 0:
        return False
    if not observation.counted_by:
        return unresolved_faults(samples[-2], samples[-1]) == 0
    return not _frame_faults(observation, samples[-2], samples[-1])


def quiet_samples(observation: Observation) -> tuple[Sample, ...]:
    """The samples after the touch, from the last backwards, without a fault on the frame."""
    quiet: list[Sample] = []
    for sample in reversed([s for s in observation.samples if s.at > 0]):
        if quiet and _frame_faults(observation, sample, quiet[-1]):
            break
        quiet.append(sample)
    return tuple(reversed(quiet))


def stuck_samples(observation: Observation) -> tuple[Sample, ...]:
    """The samples, from the last backwards, in which no vCPU entered the guest or left its place.

    A vCPU that halts waits for its guest, and one on its way in for its turn: those do not count.
    """
    stuck: list[Sample] = []
    for sample in reversed([s for s in observation.samples if s.at > 0]):
        if not sample.stacks or any(map(_is_at_rest, sample.stacks)):
            break
        if stuck and (
            [functions(each) for each in sample.stacks]
            != [functions(each) for each in stuck[-1].stacks]
            or _stat_growth(sample, stuck[-1], "exits")
        ):
            break
        stuck.append(sample)
    return tuple(reversed(stuck))


def _is_at_rest(stack: str) -> bool:
    """Whether a thread is outside of KVM_RUN, or where KVM lets a vCPU wait."""
    names = functions(stack)
    return "kvm_vcpu_ioctl" not in names or any(name.startswith(RESTING) for name in names)


def has_faulted(observation: Observation) -> bool:
    """Whether the touched frame, or any where it is not known, took a fault since the touch."""
    first = baseline(observation)
    return first is not None and _frame_faults(observation, first, observation.samples[-1]) > 0


WITH_LESS = {
    "perf": "KVM's tracepoints are counted by perf_event_open: faults on this gfn alone",
    "": "no tracepoint is counted: KVM's statistics are of all gfns, the registers tell which",
}
"""The proof that there is where tracefs is not to be had."""


def evidence_of_faults(observation: Observation, found: Attempts | None = None) -> tuple[str, ...]:
    """One line for each source that counts faults, or work, since the touch."""
    first = baseline(observation)
    if first is None:
        return ()
    return tuple(_evidence(observation, first, observation.samples[-1], found))


def _evidence(
    observation: Observation, first: Sample, last: Sample, found: Attempts | None
) -> Iterator[str]:
    gfn = found.gfn if found else observation.expected_gfn
    if observation.counted_by != "tracefs":
        yield WITH_LESS[observation.counted_by]
    if gfn is not None and observation.counted_by:
        count = sum(growth.count for growth in _growth(first, last) if growth.gfn == gfn)
        place = f", {found.faults:,} from rip {found.rip:#x}" if found and found.rip else ""
        yield f"KVM tracepoint kvm_page_fault: {count:,} faults on gfn {gfn:#x}{place}"
        started = _grown(first.async_started, last.async_started, gfn)
        ready = _grown(first.async_ready, last.async_ready, gfn)
        yield (
            f"KVM tracepoints kvm_try_async_get_page, kvm_async_pf_ready: {started:,} asynchronous "
            f"faults on it, {ready:,} reported ready"
        )
    if found and found.unresolved is not None:
        yield f"KVM statistics: {found.unresolved:,} faults came to nothing (all gfns)"
    backed = [sample.backed for sample in observation.samples if sample.backed is not None]
    if backed:
        found_there = "can be read" if backed[-1] else "cannot be read: there is no page"
        yield f"/proc/PID/mem: QEMU's own address of the page {found_there}"
    names = ("pf_taken", "pf_guest", *RESOLVED, "exits")
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
