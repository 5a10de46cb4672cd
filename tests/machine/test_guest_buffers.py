"""Finding 1 of an attack, for real: tasks of a guest hand on mappings of the mount as buffers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostfault.backing.virtiofs_dax import LOG, MOUNT_POINT, SHARED
from hostfault.case.model import Scenario
from hostfault.case.settings import Settings
from hostfault.fs.send import send_program
from hostfault.host.testbed import Testbed
from hostfault.image.guest import build_program
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.progress import heard_by
from hostfault.remote.channel import Channel
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "none", "load", async_pf=True)
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
def testbed(tmp_path: Path) -> Iterator[Testbed]:
    cache = default_cache()
    program = build_program(cache, SOURCE).read_bytes()
    with (
        heard_by(print),
        Lab(Settings(host="emulated"), cache) as lab,
        lab.testbed(SCENARIO, tmp_path) as testbed,
    ):
        patience = Deadline(60.0, "the program to be sent")
        send_program(testbed.agent, testbed.guest, program, PROGRAM, patience)
        yield testbed


def log(testbed: Testbed) -> str:
    return "".join(testbed.agent.tails([LOG], 1 << 20))


def start(testbed: Testbed, options: str = "") -> Channel:
    line = f"{PROGRAM} {MOUNT_POINT}{options}"
    return Channel("buffers", testbed.guest.open(line, Deadline(20.0, "the program to start")))


def cases(talk: Channel) -> dict[str, dict[str, object]]:
    return {step["name"]: step for step in talk.steps() if step["step"] == "case"}


def test_a_task_may_hand_on_its_mapping_of_a_file_in_every_way(testbed: Testbed) -> None:
    talk = start(testbed)
    talk.wait_for("done", Deadline(60.0, "all system calls"))
    found = cases(talk)
    assert found.keys() == CASES
    assert {name for name, case in found.items() if case["same"] is not True} == set(), found
    listed = testbed.guest.check(f"ls {MOUNT_POINT}", Deadline(20.0, "ls of the mount"))
    assert {"source", "other", "target0", "target3"} <= set(listed.split())
    told = log(testbed)
    assert '"refused"' not in told
    assert '"bug"' not in told


def test_a_task_that_hands_on_a_page_which_the_host_took_away_gets_an_error(
    testbed: Testbed,
) -> None:
    talk = start(testbed, " gone")
    talk.wait_for("mapped", Deadline(60.0, "the mapping"))
    testbed.agent.write(f"{SHARED}/source", "")
    talk.say("go")
    talk.wait_for("done", Deadline(60.0, "the system call"))
    (case,) = cases(talk).values()
    assert (case["done"], case["errno"]) == (-1, 14)  # EFAULT
    assert "bytes in the window, 0 of them are there" in log(testbed)
    listed = testbed.guest.check(f"ls -s {MOUNT_POINT}", Deadline(20.0, "ls"))
    assert "source" in listed
