"""Conditions: what they do to a VM that only pretends, and how they are proven."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.case.model import Ended, Observation, observation_from_json
from hostfault.condition import CONDITIONS
from hostfault.condition.dirty_log import is_logged
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import DeadlineError, HostfaultError, MissingCapabilityError

RECORDED = Path(__file__).parents[2] / "observations" / "spin.apf-7.3.4.json"
GFN = 0xA008


def slot(flags: int, gpa: int = 0xA000000, size: int = 0x200000, answer: int = 0) -> str:
    """A line of QEMU's log, as 11.1.3 writes it."""
    return (
        f"kvm_set_user_memory AddrSpace#0 Slot#1 flags={flags:#x} gpa={gpa:#x} size={size:#x} "
        f"ua=0x7ffb13d2b000 guest_memfd=-1 guest_memfd_offset=0x0 ret={answer}\n"
    )


class Vm:
    """A QEMU and its host; ``state`` and ``status`` are what the former says."""

    def __init__(self, log: str = "", state: str = "disabled", status: str = "measuring") -> None:
        self.recorder = self.agent = self
        self.log, self.state, self.status = log, state, status
        self.asked: list[str] = []

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append(command)
        if command == "trace-event-get-state":
            return [{"name": (arguments or {})["name"], "state": self.state}]
        return {"status": self.status}

    def tails(self, _paths: list[str], _limit: int) -> list[str]:
        return [self.log]

    def deadline(self, _seconds: float, what: str) -> Deadline:
        return Deadline(0.05, what)


def vm(**words: str) -> Any:
    return cast("Any", Vm(**words))


@pytest.fixture(scope="module")
def seen() -> Observation:
    return observation_from_json(json.loads(RECORDED.read_text()))


@pytest.mark.parametrize(
    ("log", "logged"),
    [
        ("", False),
        (slot(1), True),
        (slot(3), True),
        (slot(0), False),
        (slot(0) + slot(1), True),
        (slot(1) + slot(0), False),
        (slot(1, answer=-22), False),
        (slot(1, gpa=0xA200000), False),
        (slot(1, gpa=0xA000000, size=0x8000), False),
        ("kvm_set_user_memory and no more\n" + slot(1)[:40], False),
    ],
)
def test_a_frame_is_logged_if_its_memslot_has_the_flag_by_the_last_that_kvm_accepted(
    log: str, logged: bool
) -> None:
    assert is_logged(log, GFN) is logged


def test_the_dirty_log_is_turned_on_and_what_qemu_tells_kvm_is_traced() -> None:
    machine = vm()
    CONDITIONS["dirty-log"].begin(machine)
    assert machine.asked == ["trace-event-get-state", "trace-event-set-state", "calc-dirty-rate"]


def test_a_qemu_that_cannot_say_what_it_tells_kvm_is_a_missing_capability() -> None:
    with pytest.raises(
        MissingCapabilityError, match=r"qemu-trace: .* without trace event kvm_set_user"
    ):
        CONDITIONS["dirty-log"].begin(vm(state="unavailable"))


def test_a_memslot_without_the_flag_is_told_with_what_qemu_said_last() -> None:
    CONDITIONS["dirty-log"].prove(vm(log=slot(1)), GFN)
    with pytest.raises(DeadlineError, match=r"memslot of gfn 0xa008 .*last saw: .*flags=0x0"):
        CONDITIONS["dirty-log"].prove(vm(log=slot(0)), GFN)


def test_a_log_that_was_over_before_the_case_did_not_hold(seen: Observation) -> None:
    CONDITIONS["dirty-log"].prove_held(vm(), seen)
    with pytest.raises(HostfaultError, match="dirty-log did not hold: it is measured"):
        CONDITIONS["dirty-log"].prove_held(vm(status="measured"), seen)


def test_a_qemu_that_has_ended_is_not_asked(seen: Observation) -> None:
    machine = vm(status="measured")
    gone = dataclasses.replace(seen, qemu_ended=Ended(1, None, ""))
    CONDITIONS["dirty-log"].prove_held(machine, gone)
    assert machine.asked == []


@pytest.mark.parametrize("name", ["plain", "pinned", "migrating"])
def test_what_is_not_of_the_vm_asks_it_nothing(name: str, seen: Observation) -> None:
    machine, condition = vm(), CONDITIONS[name]
    condition.begin(machine)
    condition.prove(machine, GFN)
    condition.prove_held(machine, seen)
    assert machine.asked == []
    assert condition.task == ("" if name == "plain" else name)
