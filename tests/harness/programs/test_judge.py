"""hostfault judge: recorded observations through today's rules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hostfault.case.folder import OBSERVATION, VERDICT

RECORDED = Path(__file__).parents[2] / "observations"


def folder(parent: Path, observation: str, verdict: str | None) -> Path:
    """A test's folder with an observation, and the verdict that was written then."""
    place = parent / observation
    place.mkdir(parents=True)
    (place / OBSERVATION).write_text((RECORDED / f"{observation}.json").read_text())
    if verdict is not None:
        (place / VERDICT).write_text(json.dumps({"verdict": verdict}))
    return place


def judge(*folders: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "hostfault.judge", "judge", *map(str, folders)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_what_says_the_same_today_agrees(tmp_path: Path) -> None:
    folder(tmp_path / "run", "spin.apf-7.3.4", "spin")
    folder(tmp_path / "run", "none.qemu-killed-7.3.4", None)
    done = judge(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "SPIN" in done.stdout
    assert "NOTHING PROVEN" in done.stdout
    assert done.stdout.endswith("2 judged, 0 differ from what was recorded\n")


@pytest.mark.parametrize(
    ("observation", "then", "today"),
    [("spin.noapf-7.3.4", "ok", "SPIN"), ("none.qemu-killed-7.3.4", "vmm-death", "NOTHING PROVEN")],
)
def test_what_says_something_else_today_is_pointed_at(
    tmp_path: Path, observation: str, then: str, today: str
) -> None:
    place = folder(tmp_path, observation, then)
    done = judge(place)
    assert done.returncode == 1
    assert today in done.stdout
    assert f"recorded as {then.upper()}: {place}" in done.stdout


def test_a_folder_without_an_observation_is_trouble(tmp_path: Path) -> None:
    done = judge(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no observation.json there" in done.stderr


def test_an_observation_that_is_none_is_trouble_that_names_it(tmp_path: Path) -> None:
    place = folder(tmp_path, "spin.apf-7.3.4", "spin")
    (place / OBSERVATION).write_text('{"scenario": 5}')
    done = judge(tmp_path)
    assert done.returncode == 2
    assert f"{place / OBSERVATION}: " in done.stderr
