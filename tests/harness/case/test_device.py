"""A device of the guest's for which the host's kernel goes for a page that is gone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from case_stand_ins import MANY, kind_of, observed, sample

from hostfault.case.model import Observation, Outcome, Sample, Terms, VerdictKind
from hostfault.case.verdict import final_verdict, judge

BY_DEVICE = Terms(
    takes_page=True, control=False, writes=False, by_kernel=True, expected=None, by_device=True
)


def worked(at: float, touches: int, **changes: Any) -> Sample:
    """A sample of a host whose vhost worker does nothing else, and whose vCPU idles."""
    busy = 3.0 + 0.9 * max(at, 0.0)
    return sample(at, touches=touches, worker_seconds=busy, vcpu_seconds=10.0, **changes)


def by_device(*samples: Sample, outcome: Outcome | None = None, **changes: Any) -> Observation:
    return observed(*samples, outcome=outcome, terms=BY_DEVICE, access="vhost", **changes)


def spinning(**changes: Any) -> Observation:
    counts = ((0.1, MANY - 2), (0.2, MANY - 1), (0.3, MANY))
    return by_device(worked(-0.1, 0), *(worked(at, count) for at, count in counts), **changes)


def test_a_worker_that_tries_again_and_again_spins() -> None:
    verdict = judge(spinning())
    assert verdict is not None
    assert verdict.kind is VerdictKind.SPIN
    assert any(f"{MANY}" in line for line in verdict.evidence)


@pytest.mark.parametrize(
    "last",
    [
        worked(0.3, MANY - 1),
        worked(0.3, MANY, backed=True),
        worked(0.3, MANY, backed=None),
        worked(0.3, MANY, run_state="paused"),
        dataclasses.replace(worked(0.3, MANY), worker_seconds=3.1),
    ],
    ids=["too-few", "page-there", "page-unknown", "stopped", "idle"],
)
def test_a_worker_of_which_one_thing_is_missing_does_not(last: Sample) -> None:
    seen = spinning()
    assert judge(dataclasses.replace(seen, samples=(*seen.samples[:-1], last))) is None


def test_tries_that_have_ended_are_no_spin() -> None:
    seen = spinning()
    pause = worked(0.4, MANY)
    assert judge(dataclasses.replace(seen, samples=(*seen.samples[:2], pause, pause))) is None


def test_what_a_worker_does_is_no_access_of_a_task() -> None:
    of_a_task = dataclasses.replace(BY_DEVICE, by_device=False)
    assert judge(dataclasses.replace(spinning(), terms=of_a_task)) is None


def test_a_byte_that_the_device_has_read_is_judged_by_what_the_host_has() -> None:
    came_back = Outcome("value", 0)
    terms = dataclasses.replace(BY_DEVICE, expected=0)
    samples = (worked(-0.1, 0), worked(0.1, 1), worked(0.2, 1))
    seen = by_device(*samples, outcome=came_back, stored_byte=0)
    assert kind_of(dataclasses.replace(seen, terms=terms)) is VerdictKind.OK
    assert kind_of(seen) is VerdictKind.STALE
    assert kind_of(dataclasses.replace(seen, stored_byte=0x88)) is None


def test_a_datagram_that_is_dropped_leaves_its_task_asleep() -> None:
    calm = [worked(at, 1) for at in range(1, 7)]
    seen = by_device(worked(-0.1, 0), *calm, guest_answers=True)
    assert judge(seen) is None
    verdict = final_verdict(seen)
    assert verdict.kind is VerdictKind.STALL
    assert any(line.startswith("tracepoint page_fault_kernel: 1 ") for line in verdict.evidence)
