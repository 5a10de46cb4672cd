"""Verdicts where the VMM has a policy: what it did is a second source, and never the proof."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from hostfault.case.model import (
    Event,
    FrameFaults,
    Observation,
    Outcome,
    Page,
    ProbeReport,
    Sample,
    Scenario,
    Terms,
    UserspaceExit,
    Verdict,
    VerdictKind,
    VmmDeed,
)
from hostfault.case.trouble import trouble
from hostfault.case.verdict import judge
from hostfault.case.vmm import HOLD_TRIES
from hostfault.plumbing.errors import GuestLostError

GFN, RIP, ADDRESS = 0xF8000, 0x4019D6, 0x7F0000008000
GPA = GFN * 4096
EFAULT, EIO, MEMORY_FAULT = 14, 5, 39
BUS_MCEERR_AR, SIGBUS = 4, 7


def sample(at: float, told: int, error: int = EFAULT, **changes: Any) -> Sample:
    """A sample by which KVM_RUN has failed ``told`` times, with a fault on the frame each."""
    seen = Sample(
        at=at,
        faults=(FrameFaults(GFN, RIP, told),) if told else (),
        async_started={},
        async_ready={},
        vcpu_stats={},
        vcpu_seconds=0.0,
        run_state="running",
        exits=(UserspaceExit(MEMORY_FAULT, -error, told),) if told else (),
        backed=None if at <= 0 else False,
    )
    return dataclasses.replace(seen, **changes)


def observed(*deeds: VmmDeed, told: int, policy: str = "stop", **changes: Any) -> Observation:
    whole = Observation(
        scenario=Scenario("virtiofs-dax", "zero", "load", async_pf=True),
        terms=Terms(takes_page=True, control=False, writes=False, by_kernel=False, expected=None),
        page=Page("shared/data", 0x8000, "tmpfs"),
        expected_gfn=GFN,
        waited=1.0,
        probe=ProbeReport(7, ADDRESS, ADDRESS, RIP, ("armed", "touching"), None),
        samples=(sample(-0.1, 0), sample(0.1, told), sample(0.2, told)),
        vmm_policy=policy,
        vmm_deeds=deeds,
    )
    return dataclasses.replace(whole, **changes)


def held(tries: int, gpa: int = GPA) -> VmmDeed:
    return VmmDeed("held", 1, gpa, tries=tries)


HELD = observed(held(HOLD_TRIES), told=HOLD_TRIES)


def kind_of(observation: Observation) -> VerdictKind | None:
    verdict = judge(observation)
    return verdict.kind if verdict else None


def test_a_vcpu_that_is_kept_out_again_and_again_is_a_vm_exit() -> None:
    verdict = judge(HELD)
    assert verdict is not None
    assert verdict.kind is VerdictKind.VM_EXIT
    assert "gfn 0xf8000" in verdict.summary
    assert any(f"{HOLD_TRIES} times errno 14" in line for line in verdict.evidence)
    assert verdict.evidence[-1].startswith("VMM policy stop: held 1, the last one at 0xf8000000")


NEAR_MISSES = {
    "too few tries": observed(held(HOLD_TRIES - 1), told=HOLD_TRIES),
    "the log alone": observed(held(HOLD_TRIES), told=HOLD_TRIES - 1),
    "another frame": observed(held(HOLD_TRIES, GPA + 4096), told=HOLD_TRIES),
    "let go since": observed(held(HOLD_TRIES), VmmDeed("released", 1, GPA), told=HOLD_TRIES),
    "stopped by QEMU": dataclasses.replace(
        HELD, samples=(*HELD.samples, sample(0.3, HOLD_TRIES, run_state="paused"))
    ),
    "the page is there": dataclasses.replace(
        HELD, samples=(*HELD.samples, sample(0.3, HOLD_TRIES, backed=True))
    ),
    "another error": dataclasses.replace(
        HELD, samples=(sample(-0.1, 0), sample(0.1, HOLD_TRIES, EIO), sample(0.2, HOLD_TRIES, EIO))
    ),
}


@pytest.mark.parametrize("observation", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_less_than_that_proves_no_vm_exit(observation: Observation) -> None:
    assert kind_of(observation) is None


def test_a_vcpu_that_is_held_is_no_spin_however_often_it_tries() -> None:
    many = observed(held(1024), told=1024)
    assert kind_of(many) is VerdictKind.VM_EXIT


def test_a_machine_check_that_the_task_got_is_a_task_error_and_named_in_the_evidence() -> None:
    signal = Outcome("signal", SIGBUS, BUS_MCEERR_AR, ADDRESS, RIP)
    injected = VmmDeed("injected", 1, GPA, flags=2, words="vendor amd")
    seen = observed(injected, told=1, policy="mce")
    verdict = judge(
        dataclasses.replace(
            seen,
            probe=dataclasses.replace(seen.probe, outcome=signal),
            guest_console="mce: [Hardware Error]: CPU 0: Machine Check Exception: 7 Bank 9",
        )
    )
    assert isinstance(verdict, Verdict)
    assert verdict.kind is VerdictKind.TASK_ERROR
    assert verdict.evidence[-1] == (
        "VMM policy mce: injected 1, the last one at 0xf8000000 (write), vendor amd"
    )


def silent_reset(*deeds: VmmDeed) -> Observation:
    event = Event("RESET", 0.15, {"guest": True, "reason": "guest-reset"})
    return observed(*deeds, told=1, policy="mce", events=(event,), on_tcg=True)


def test_a_guest_that_resets_after_a_machine_check_is_dead_and_not_lost() -> None:
    dead = silent_reset(VmmDeed("injected", 1, GPA))
    assert trouble(dead) is None
    assert kind_of(dead) is VerdictKind.GUEST_DEATH


def test_a_guest_that_resets_without_one_is_lost_as_ever() -> None:
    assert isinstance(trouble(silent_reset(VmmDeed("loaded", 1))), GuestLostError)


def test_a_stock_vmm_adds_nothing_to_the_evidence() -> None:
    spin = observed(told=0, policy="stock", samples=(sample(-0.1, 0),))
    signal = Outcome("signal", SIGBUS, BUS_MCEERR_AR, ADDRESS, RIP)
    seen = observed(told=1, policy="stock")
    verdict = judge(
        dataclasses.replace(seen, probe=dataclasses.replace(spin.probe, outcome=signal))
    )
    assert verdict is not None
    assert not any(line.startswith("VMM policy") for line in verdict.evidence)


def event(action: str = "stop", gpa: int = GPA) -> Event:
    data = {
        "memory-backend": "/objects/part",
        "offset": 0x8000,
        "guest-physical-address": gpa,
        "access": "write",
        "cpu-index": 0,
        "action": action,
    }
    return Event("MEMORY_UNBACKED", 0.1, data)


def stopped(*events: Event, told: int = 1, error: int = EFAULT, state: str = "io-error") -> Any:
    last = sample(0.2, told, error, run_state=state)
    samples = (sample(-0.1, 0), sample(0.1, told, error), last)
    return observed(told=told, policy="qemu-stop", samples=samples, events=events)


def test_a_vm_that_qemu_stopped_by_its_policy_is_a_vm_exit_that_names_the_backend() -> None:
    verdict = judge(stopped(event()))
    assert verdict is not None
    assert verdict.kind is VerdictKind.VM_EXIT
    assert "/objects/part" in verdict.summary
    assert any("access write" in line for line in verdict.evidence)


STOPS_THAT_PROVE_NOTHING = {
    "no event": stopped(),
    "another page": stopped(event(gpa=GPA + 4096)),
    "a machine check": stopped(event("mce")),
    "KVM has told nothing": stopped(event(), told=0),
    "KVM has told something else": stopped(event(), error=EIO),
    "somebody has stopped it": stopped(event(), state="paused"),
    "an address that is none": stopped(dataclasses.replace(event(), data={"action": "stop"})),
}


@pytest.mark.parametrize(
    "observation", STOPS_THAT_PROVE_NOTHING.values(), ids=STOPS_THAT_PROVE_NOTHING
)
def test_a_stop_for_another_reason_proves_nothing_of_the_page(observation: Observation) -> None:
    assert kind_of(observation) is None


def test_a_guest_that_resets_after_qemus_machine_check_is_dead_and_not_lost() -> None:
    seen = silent_reset()
    assert trouble(dataclasses.replace(seen, events=(event("mce"), *seen.events))) is None
