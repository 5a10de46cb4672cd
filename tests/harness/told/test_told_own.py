"""A page that the guest's kernel takes for itself, by machines that answer as they are told to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.case.model import PAGE_SIZE, Event
from hostfault.plumbing.errors import DeadlineError, HostfaultError
from hostfault.remote.channel import Channel
from hostfault.told import own
from hostfault.told.plan import DIMM_AT

GFN = DIMM_AT // PAGE_SIZE + 5
DONE = json.dumps({"step": "done", "sum": own.right_sum()})
PANIC = "[ 9.1] Kernel panic - not syncing: Fatal local machine check\n"


class Machines:
    """An agent, a recorder and the program in the guest in one."""

    def __init__(
        self,
        faults: int = 0,
        failed: int = 0,
        event: str = "",
        says: str = "",
        says_with_room: str = "",
    ) -> None:
        self.faults, self.failed, self.event = faults, failed, event
        self.says, self.says_with_room = says, says_with_room

    def sample(self, *_: object) -> dict[str, Any]:
        faults = [[GFN, 1, self.faults], [5, 2, 10**6]]  # the other frame is not the DIMM's
        return {"faults": faults, "exits": [[39, -own.EFAULT, self.failed]], "tails": []}

    def events(self) -> list[Event]:
        return [Event(self.event, 1.0, {})] if self.event else []

    def read(self, *_: object, **__: object) -> tuple[str, int]:
        return PANIC, 0

    def make_room(self, _path: str) -> None:
        self.says = self.says_with_room

    def settimeout(self, _seconds: float) -> None: ...

    def recv(self, _size: int) -> bytes:
        if not self.says:
            raise TimeoutError
        said, self.says = self.says, ""
        return said.encode() + b"\n"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PATIENCE", 0.1)


def a_testbed(machines: Machines) -> Any:
    return SimpleNamespace(agent=machines, recorder=machines, policy=SimpleNamespace(logs=()))


def what_follows(machines: Machines, policy: str = "stock") -> tuple[str, str]:
    return own._what_follows(a_testbed(machines), Channel("guest", cast("Any", machines)), policy)


@pytest.mark.parametrize(
    ("machines", "policy", "verdict"),
    [
        (Machines(faults=own.SPINS), "stock", "spin"),
        (Machines(failed=own.FAILED, faults=9), "stop", "vm-exit"),
        (Machines(event="GUEST_PANICKED"), "mce", "guest-death"),
        (Machines(event="STOP"), "stock", "vm-exit"),
    ],
)
def test_what_becomes_of_a_guests_kernel_is_proven(
    machines: Machines, policy: str, verdict: str
) -> None:
    assert what_follows(machines, policy)[0] == verdict


@pytest.mark.parametrize(
    "machines",
    [Machines(faults=own.SPINS - 1), Machines(faults=own.SPINS, failed=1)],
    ids=["too few faults", "user space was told"],
)
def test_what_proves_nothing_is_trouble(machines: Machines) -> None:
    with pytest.raises(DeadlineError):
        what_follows(machines)


def test_a_guest_that_met_no_such_page_is_trouble() -> None:
    with pytest.raises(HostfaultError, match="took no page"):
        what_follows(Machines(says=DONE))


@pytest.mark.parametrize(
    ("says", "recovery"),
    [(DONE, "goes-on"), (DONE.replace(own.right_sum(), "0" * 32), "goes on with wrong bytes")],
)
def test_whether_it_goes_on_is_told_by_its_bytes(says: str, recovery: str) -> None:
    machines = Machines(says_with_room=says)
    assert own._make_room(a_testbed(machines), Channel("guest", cast("Any", machines))) == recovery


def test_a_guest_that_does_not_go_on_is_lost() -> None:
    machines = Machines()
    assert own._make_room(a_testbed(machines), Channel("guest", cast("Any", machines))) == "lost"


def test_the_work_of_the_guest_ends_with_the_sum_that_is_wanted(tmp_path: Path) -> None:
    """Its commands but for those that need a guest, in this machine's shell."""
    script = own.WORK.replace("/sys/devices/system/memory", str(tmp_path / "none"))
    script = script.replace("mount -t tmpfs own", "true").replace("/tmp/own", str(tmp_path / "own"))
    done = subprocess.run(
        ["bash", "-c", f"shopt -s nullglob; {script}"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(DONE)
