"""Observations survive JSON, and what is no observation is refused with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hostfault.case.model import (
    Ended,
    Event,
    FrameFaults,
    Observation,
    Outcome,
    Page,
    ProbeReport,
    Sample,
    Scenario,
    Terms,
    observation_from_json,
    to_json,
)

WHOLE = Observation(
    scenario=Scenario("virtiofs-dax", "middle", "store", async_pf=False, vcpus=2),
    terms=Terms(True, False, True, False, None),
    page=Page("shared/data", 0x8000, "tmpfs"),
    expected_gfn=0xF8000,
    waited=1.5,
    probe=ProbeReport(1, 2, 3, 4, ("armed", "going"), Outcome("signal", 7, 2, 3, 4)),
    samples=(
        Sample(
            at=-0.5,
            faults=(FrameFaults(0xF8000, 0x401000, 3),),
            async_started={0xF8000: 3},
            async_ready={0xF8000: 2},
            vcpu_stats={"pf_taken": 10, "guest_mode": False},
            vcpu_seconds=0.25,
            run_state="running",
        ),
    ),
    events=(Event("STOP", 0.5), Event("RESET", 0.6, {"guest": True}, host=True)),
    registers="RIP=0",
    guest_console="console",
    qemu_log="log",
    qemu_ended=Ended(None, 7, "last words"),
    host_ended=Ended(0, None, ""),
    host_log="host",
    stored_byte=0x5A,
)


def through_json(observation: Observation) -> Any:
    return json.loads(json.dumps(to_json(observation)))


def test_an_observation_comes_back_from_json_as_it_was() -> None:
    assert observation_from_json(through_json(WHOLE)) == WHOLE


def test_numbers_that_are_keys_stay_numbers() -> None:
    back = observation_from_json(through_json(WHOLE))
    assert back.samples[0].async_started == {0xF8000: 3}


def test_fields_with_defaults_may_be_missing() -> None:
    data = through_json(WHOLE)
    del data["host_log"]
    assert observation_from_json(data).host_log == ""


def test_a_whole_number_of_seconds_is_a_number_of_seconds() -> None:
    data = through_json(WHOLE)
    data["waited"] = 2
    assert observation_from_json(data).waited == 2.0


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("waited",), "long", "observation.waited: 'long' is not float"),
        (("samples", 0, "at"), None, r"observation.samples\[0\].at: None is not float"),
        (("samples",), {}, "observation.samples: {} is not"),
        (("probe",), [], r"observation.probe: \[\] is not an object"),
        (("scenario", "fault"), 5, "observation.scenario.fault: 5 is not str"),
        (("surprise",), 1, r"unknown fields \['surprise'\]"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else None,
)
def test_a_wrong_field_is_refused_with_its_place(
    path: tuple[str | int, ...], value: object, message: str
) -> None:
    data = through_json(WHOLE)
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        observation_from_json(data)


def test_a_missing_field_is_refused_with_its_name() -> None:
    data = through_json(WHOLE)
    del data["samples"][0]["run_state"]
    with pytest.raises(ValueError, match="run_state"):
        observation_from_json(data)
