"""Observations made up for the rules, and those that were recorded."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from hostfault.case.model import (
    FrameFaults,
    Observation,
    Outcome,
    Page,
    ProbeReport,
    Sample,
    Scenario,
    Terms,
    VerdictKind,
    observation_from_json,
)
from hostfault.case.verdict import SPIN_FAILURES, judge

GFN, RIP, ADDRESS = 0xF8000, 0x4019D6, 0x7F0000008000
SIGBUS, BUS_ADRERR, SIGTERM, SI_USER = 7, 2, 15, 0
FEW = SPIN_FAILURES - 1
MANY = SPIN_FAILURES
OBSERVATIONS = Path(__file__).parents[2] / "observations"
RECORDED = sorted(OBSERVATIONS.glob("*.json"))


def sample(at: float, *faults: tuple[int, int, int], **changes: Any) -> Sample:
    """A sample of a vCPU that does nothing but take these faults (gfn, rip, count)."""
    return dataclasses.replace(
        Sample(
            at=at,
            faults=tuple(FrameFaults(*fault) for fault in faults),
            async_started={},
            async_ready={},
            vcpu_stats={"pf_taken": 5000 + sum(count for _, _, count in faults)},
            vcpu_seconds=10.0 + 0.9 * at,
            run_state="running",
            backed=None if at <= 0 else False,
        ),
        **changes,
    )


def observed(
    *samples: Sample,
    outcome: Outcome | None = None,
    access: str = "load",
    fault: str = "zero",
    expected: int | None = None,
    **changes: Any,
) -> Observation:
    probe = ProbeReport(
        pid=77,
        mapping=ADDRESS - 0x8000,
        address=ADDRESS,
        rip=RIP,
        steps=("armed", '{"step":"touching"}'),
        outcome=outcome,
    )
    whole = Observation(
        scenario=Scenario("virtiofs-dax", fault, access, async_pf=True),
        terms=Terms(
            takes_page=fault == "zero",
            control=fault == "none",
            writes=access == "store",
            by_kernel=False,
            expected=expected,
        ),
        page=Page("shared/data", 0x8000, "tmpfs"),
        expected_gfn=GFN,
        waited=samples[-1].at if samples else 0.0,
        probe=probe,
        samples=samples,
    )
    return dataclasses.replace(whole, **changes)


def rising(count: int, *, gfn: int = GFN, rip: int = RIP, **changes: Any) -> list[Sample]:
    """A sample from before the touch, and three that see faults rise to ``count``."""
    counts = [(0.1, count - 2), (0.2, count - 1), (0.3, count)]
    return [sample(-0.1), *(sample(at, (gfn, rip, now), **changes) for at, now in counts)]


def spinning(count: int = MANY, **changes: Any) -> Observation:
    return observed(*rising(count), **changes)


def quiet(outcome: Outcome | None = None, **changes: Any) -> Observation:
    """One legitimate fault, and then nothing any more."""
    once = (GFN, RIP, 1)
    return observed(sample(-0.1), sample(0.1, once), sample(0.2, once), outcome=outcome, **changes)


def kind_of(observation: Observation) -> VerdictKind | None:
    verdict = judge(observation)
    return verdict.kind if verdict else None


def asleep(**changes: Any) -> Observation:
    """Two faults, and then seconds of nothing."""
    calm = [sample(at, (GFN, RIP, 2), vcpu_seconds=10.0 + 0.01 * at) for at in range(1, 7)]
    calm[2] = dataclasses.replace(calm[2], **changes)
    return observed(sample(-0.1), *calm, guest_answers=True)


def recorded(name: str) -> Observation:
    """A recorded observation by its file's name."""
    return observation_from_json(json.loads((OBSERVATIONS / name).read_text()))


def facts_of(summary: str) -> list[str]:
    """The numbers, addresses and signals of a summary, in their order, without its words."""
    return re.findall(r"\b(?:0x[0-9a-f]+|SIG[A-Z]+|[0-9][0-9,]*(?:\.[0-9]+)?)\b", summary)
