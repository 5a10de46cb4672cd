"""Counting what a guest without faults costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hostfault.told import exits
from hostfault.told.outcome import Ran
from hostfault.told.plan import CELLS

CELL = next(cell for cell in CELLS if cell.key == "exits-stock")


class CountingGuest:
    """Each run costs more exits than the one before, and the third an error."""

    def __init__(self) -> None:
        self.runs = self.exits = 0

    version = "11.1.3"

    def hello(self) -> dict[str, str]:
        return {"release": "7.3.4", "kvm_build_id": "ab"}

    def program_of(self, *_: object) -> str:
        return "cd"

    def reads_kernel_log(self) -> bool:
        return True

    def trace(self) -> None: ...

    def check(self, _command: str, _deadline: object) -> None:
        self.runs += 1
        self.exits += 1000 + self.runs

    def sample(self, _name: str, _tails: object) -> dict[str, Any]:
        return {"exits": [[2, 0, 10 * self.runs], [39, -14, int(self.runs >= 3)]]}

    def ask(self, _command: str, _arguments: object) -> Callable[[], list[Any]]:
        names = {"exits": self.exits, "pf_taken": 7 * self.runs}
        stats = [{"name": name, "value": value} for name, value in names.items()]
        return lambda: [{"stats": stats}]


class PretendedLab:
    def __init__(self, guest: CountingGuest) -> None:
        self.guest = guest

    @contextmanager
    def testbed(self, _scenario: object, _folder: Path) -> Iterator[Any]:
        yield SimpleNamespace(agent=self.guest, guest=self.guest, recorder=self.guest)


def test_each_run_is_counted_alone_and_the_first_one_not_at_all() -> None:
    guest = CountingGuest()
    found = exits.run(cast("Any", PretendedLab(guest)), CELL, Path("/"))
    assert found.ran == Ran("11.1.3 cd", "7.3.4", "ab")
    assert guest.runs == exits.RUNS + 1
    assert "1,004 exits (1,002 to 1,006)" in found.summary
    assert "7 page faults (7 to 7)" in found.summary
    assert found.told == 1
