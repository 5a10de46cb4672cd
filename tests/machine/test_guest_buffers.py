"""Finding 1 of an attack, for real: tasks of a guest hand on mappings of the mount as buffers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostfault.backing import virtiofs_dax
from hostfault.case.model import Access, Fault, Scenario
from hostfault.fs.send import send_program
from hostfault.host.testbed import Place
from hostfault.image.guest import build_program
from hostfault.plugin.options import Settings
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.channel import Talk
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", Fault.NONE, Access.LOAD, async_pf=True)
SOURCE = Path(__file__).parent / "buffers.c"
PROGRAM = "/tmp/buffers"
CASES = {
    "write",
    "write direct",
    "writev",
    "splice to a file",
    "read",
    "read direct",
    "readv",
    "splice from a file",
    "write to its own file",
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    cache = default_cache()
    program = build_program(cache, SOURCE).read_bytes()
    with (
        Lab(Settings(host="emulated"), print, cache) as lab,
        lab.place(SCENARIO, tmp_path) as place,
    ):
        send_program(place.guest, program, PROGRAM, Deadline(60.0, "the program to be sent"))
        yield place


def start(place: Place, options: str = "") -> Talk:
    line = f"{PROGRAM} {virtiofs_dax.MOUNT_POINT}{options}"
    return Talk("buffers", place.guest.open(line, Deadline(20.0, "the program to start")))


def cases(talk: Talk) -> dict[str, dict[str, object]]:
    return {step["name"]: step for step in talk.steps() if step["step"] == "case"}


def test_a_task_may_hand_on_its_mapping_of_a_file_in_every_way(place: Place) -> None:
    talk = start(place)
    talk.wait_for("done", Deadline(60.0, "all system calls"))
    found = cases(talk)
    assert found.keys() == CASES
    assert {name for name, case in found.items() if case["same"] is not True} == set(), found
    listed = place.guest.check(f"ls {virtiofs_dax.MOUNT_POINT}", Deadline(20.0, "ls of the mount"))
    assert {"source", "other", "target0", "target3"} <= set(listed.split())
    log = virtiofs_dax.log(place.agent)
    assert '"refused"' not in log
    assert '"bug"' not in log


def test_a_task_that_hands_on_a_page_which_the_host_took_away_gets_an_error(place: Place) -> None:
    talk = start(place, " gone")
    talk.wait_for("mapped", Deadline(60.0, "the mapping"))
    place.agent.write(f"{virtiofs_dax.SHARED}/source", "")
    talk.say("go")
    talk.wait_for("done", Deadline(60.0, "the system call"))
    (case,) = cases(talk).values()
    assert (case["done"], case["errno"]) == (-1, 14)  # EFAULT
    assert "bytes in the window, 0 of them are there" in virtiofs_dax.log(place.agent)
    listed = place.guest.check(f"ls -s {virtiofs_dax.MOUNT_POINT}", Deadline(20.0, "ls"))
    assert "source" in listed
