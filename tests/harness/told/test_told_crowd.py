"""A crowd on pages that are gone, in a pretended guest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.case.model import Event
from hostfault.guest.policy import VmmPolicy
from hostfault.plumbing.errors import HostfaultError
from hostfault.told import crowd
from hostfault.told.outcome import Outcome
from hostfault.told.plan import CELLS

MANY = next(cell for cell in CELLS if cell.key == "crowd")
STOPPED = next(cell for cell in CELLS if cell.key == "crowd-stop")


class Guest:
    """A stream to the crowd, and the agent and QMP of its host; a few tasks are enough."""

    def __init__(
        self, outcome: tuple[int, int], *, waits: bool = False, stops: bool = False
    ) -> None:
        self.outcome, self.waits, self.stops, self.tells = outcome, waits, stops, True
        self.said = [json.dumps({"step": "mapped"}) + "\n"]
        self.sizes: list[int] = []
        self.samples = 0

    # what runs
    version = "11.1.3"

    def hello(self) -> dict[str, str]:
        return {"release": "7.3.4", "kvm_build_id": "ab"}

    def program_of(self, *_: object) -> str:
        return "cd"

    def reads_kernel_log(self) -> bool:
        return True

    # the stream
    def settimeout(self, _seconds: float) -> None: ...

    def sendall(self, data: bytes) -> None:
        word, *pages = data.decode().split()
        if word == "pages":
            steps: list[dict[str, Any]] = [
                {"step": "task", "number": number, "pid": number, "page": int(page)}
                for number, page in enumerate(pages)
            ]
            steps.append({"step": "armed", "rip": "0x1", "mark": "0x0"})
        else:
            steps = []
            if not self.waits:
                self._end()
        self.said.append("".join(json.dumps(step) + "\n" for step in steps))

    def recv(self, _size: int) -> bytes:
        said = "".join(self.said)
        self.said.clear()
        if not said:
            raise TimeoutError
        return said.encode()

    def _end(self) -> None:
        touched, signalled = self.outcome
        step = {"step": "outcome", "touched": touched, "signalled": signalled}
        self.said.append(json.dumps(step) + "\n")

    # the agent
    def make_file(self, *_: object) -> None: ...

    def trace(self) -> None: ...

    def truncate(self, _path: str, size: int) -> int:
        self.sizes.append(size)
        if len(self.sizes) == 3:  # made, cut, and given back
            self._end()
        return size

    def sample(self, _name: str, tails: Sequence[str]) -> dict[str, Any]:
        self.samples += 1
        held = {"did": "held", "n": 1, "gpa": 4096, "flags": 1, "tries": 1}
        return {
            "exits": [[39, -14, 32 + self.samples if self.tells else 0], [17, -4, 9]],
            "vcpu_seconds": 0.001 * self.samples,
            "tails": [json.dumps(held) + "\n" for _ in tails],
        }

    # QMP
    def wait_changed(self, _seconds: float) -> None: ...

    def events(self) -> tuple[Event, ...]:
        return (Event("STOP", 1.0),) if self.stops else ()

    # the shell
    def open(self, _command: str, _deadline: object) -> Guest:
        return self

    def run(self, _command: str, _deadline: object) -> Any:
        return SimpleNamespace(code=0)


class PretendedLab:
    def __init__(self, guest: Guest, policy: str) -> None:
        self.guest, self.policy = guest, VmmPolicy(policy, "/policy.so")

    @contextmanager
    def testbed(self, _scenario: object, _folder: Path) -> Iterator[Any]:
        guest = self.guest
        yield SimpleNamespace(agent=guest, guest=guest, recorder=guest, policy=self.policy)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "WINDOW", 0.02)
    monkeypatch.setattr(crowd, "PATIENCE", 1.0)


def run(guest: Guest, cell: Any) -> Outcome:
    return crowd.run(cast("Any", PretendedLab(guest, cell.policy)), cell, Path("/"))


def test_a_crowd_whose_bad_tasks_all_got_a_signal_was_told() -> None:
    guest = Guest((0, 32))
    found = run(guest, MANY)
    assert (found.verdict, found.told, found.guest_answers) == ("task-error", 33, True)
    assert guest.sizes == [crowd.LENGTH, 0]


@pytest.mark.parametrize("outcome", [(1, 31), (32, 0), (0, 31)])
def test_a_touch_that_worked_or_a_task_that_is_missing_is_no_task_error(
    outcome: tuple[int, int],
) -> None:
    assert run(Guest(outcome), MANY).verdict == "stale"


def test_a_crowd_that_waits_goes_on_when_its_file_grows_again() -> None:
    guest = Guest((32, 0), waits=True)
    found = run(guest, STOPPED)
    assert (found.verdict, found.recovery) == ("vm-exit", "goes-on")
    assert guest.sizes == [crowd.LENGTH, 0, crowd.LENGTH]
    assert 0 < found.cpu_share < 1


def test_a_crowd_of_which_some_got_a_signal_after_waiting_is_lost() -> None:
    assert run(Guest((31, 1), waits=True), STOPPED).recovery == "lost"


def test_a_vcpu_that_is_not_kept_out_proves_nothing() -> None:
    guest = Guest((32, 0), waits=True)
    guest.tells = False
    with pytest.raises(HostfaultError, match="a vCPU to be kept out of the guest"):
        run(guest, STOPPED)


def test_a_vm_that_stops_under_the_crowd_is_an_error() -> None:
    with pytest.raises(HostfaultError, match="the VM stopped"):
        run(Guest((0, 32), stops=True), MANY)
