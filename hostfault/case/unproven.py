"""What is said of an observation that proves nothing. Pure."""

from __future__ import annotations

from hostfault.case.counting import cpu_share, frame_growth
from hostfault.case.model import Observation, Sample
from hostfault.case.trouble import guest_events
from hostfault.case.words import liveness, probe_line


def seen(observation: Observation) -> str:
    """Everything that bears on the question, for the error that answers none."""
    last: Sample | None = observation.samples[-1] if observation.samples else None
    parts = [probe_line(observation)]
    if last is not None:
        parts.append(f"run state {last.run_state or 'unknown'}")
        parts.append(f"vCPU threads at {cpu_share(observation):.0%} of a core")
    growth = sorted(frame_growth(observation), key=lambda f: f.count, reverse=True)[:3]
    if not growth:
        parts.append("no fault at all on the host (does it count in another PID namespace?)")
    parts += [f"{f.count:,} faults on gfn {f.gfn:#x} from rip {f.rip:#x}" for f in growth]
    if observation.expected_gfn is not None:
        parts.append(f"expected gfn {observation.expected_gfn:#x}")
    parts += liveness(observation)
    parts += [f"event {event.name}" for event in guest_events(observation)]
    if observation.qemu_ended is not None:
        parts.append("QEMU was told to end")
    return "; ".join(parts)
