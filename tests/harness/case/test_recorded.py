"""Recorded observations of real runs replay to the verdict in their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from case_stand_ins import (
    RECORDED,
)

from hostfault.case.model import (
    VerdictKind,
    observation_from_json,
)
from hostfault.case.verdict import final_verdict
from hostfault.plumbing.errors import HostfaultError


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_observation_replays_to_the_verdict_in_its_file_name(path: Path) -> None:
    observation = observation_from_json(json.loads(path.read_text()))
    wanted = path.name.split(".")[0]
    if wanted == "none":
        with pytest.raises(HostfaultError):
            final_verdict(observation)
    else:
        assert final_verdict(observation).kind == wanted


def test_there_is_a_recorded_observation_of_every_verdict() -> None:
    assert {path.name.split(".")[0] for path in RECORDED} - {"none"} == set(VerdictKind)
