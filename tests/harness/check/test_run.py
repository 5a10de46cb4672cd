"""One case, with a pretended lab: what is noted of it, and what counts as observed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.case.model import Observation, Scenario, observation_from_json
from hostfault.check import __main__ as program
from hostfault.check import plan
from hostfault.check import run as module
from hostfault.check.matrix import FINE, NOTHING, Standing
from hostfault.plumbing.errors import GuestLostError, HostfaultError, LaunchError, UsageError
from hostfault.run.lab import Lab

OBSERVATIONS = Path(__file__).parents[2] / "observations"
SPINS = plan.case_of("1/1", [each for each in plan.SITUATIONS if each.name == "spins"])


def recorded(name: str) -> Observation:
    return observation_from_json(json.loads((OBSERVATIONS / name).read_text()))


class PretendedLab:
    """A lab whose test beds are nothing; one that does not come up raises."""

    def __init__(self, *errors: HostfaultError) -> None:
        self.errors = list(errors)
        self.folders: list[str] = []

    @contextmanager
    def testbed(self, _scenario: Scenario, folder: Path) -> Iterator[Any]:
        folder.mkdir(parents=True)
        self.folders.append(folder.name)
        if self.errors:
            raise self.errors.pop(0)
        yield None


@pytest.fixture
def observes(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def observe(name: str) -> None:
        monkeypatch.setattr(module, "_observe", lambda *_: recorded(name))

    return observe


def run(lab: PretendedLab, folder: Path) -> Any:
    return module.run(cast(Lab, lab), SPINS, folder)


def test_a_spin_is_noted_with_its_evidence(observes: Callable[[str], None], tmp_path: Path) -> None:
    observes("spin.apf-7.3.4.json")
    result = run(PretendedLab(), tmp_path)
    assert (result.said, result.truth, result.standing) == ("spin", "spin", Standing.RIGHT)
    kept = json.loads((tmp_path / "attempt-1" / "observation.json").read_text())
    assert observation_from_json(kept) == recorded("spin.apf-7.3.4.json")


def test_an_observation_that_proves_nothing_says_nothing(
    observes: Callable[[str], None], tmp_path: Path
) -> None:
    observes("none.qemu-killed-7.3.4.json")
    result = run(PretendedLab(), tmp_path)
    assert result.said == NOTHING
    assert "SIGKILL" in result.words


def test_a_machine_that_does_not_come_up_was_never_observed(tmp_path: Path) -> None:
    result = run(PretendedLab(LaunchError("QEMU", ["qemu"], 1, "no")), tmp_path)
    assert result.said == ""
    assert result.standing is Standing.TROUBLE


def test_a_guest_that_the_emulated_cpu_lost_is_tried_again(
    observes: Callable[[str], None], tmp_path: Path
) -> None:
    observes("spin.apf-7.3.4.json")
    lab = PretendedLab(GuestLostError("reset"), GuestLostError("reset"))
    assert run(lab, tmp_path).said == "spin"
    assert lab.folders == ["attempt-1", "attempt-2", "attempt-3"]
    thrice = PretendedLab(*[GuestLostError("reset")] * 3)
    assert run(thrice, tmp_path / "again").standing is Standing.TROUBLE


def test_runs_in_pieces_add_up(
    observes: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    observes("spin.apf-7.3.4.json")
    pieces = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for number, piece in enumerate(pieces):
        program._keep(run(PretendedLab(), tmp_path / str(number)), piece)
    assert program.main(["--add-up", *map(str, pieces)]) == FINE
    assert "2 cases: 2 right" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["5", "--only", "sings"]])
def test_a_wrong_command_line_is_told(words: list[str]) -> None:
    with pytest.raises(UsageError):
        program.main(words)
