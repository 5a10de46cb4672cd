"""A guest outlives an emulated host that is stopped and continued all the time.

Each stop makes QEMU's thread of a CPU leave its loop wherever it is, as events of a busy machine do
now and then. See hostfault/image/mend.py: without what is mended there, the guest hangs.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import cast

import pytest

from hostfault.case.model import Scenario
from hostfault.case.settings import Settings
from hostfault.host.emulated import EmulatedLife
from hostfault.host.outer_qemu import Machine
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.progress import heard_by
from hostfault.run.lab import Lab

STOPS = 2000
BUSY = "(while :; do true | cat; done) >/dev/null 2>&1 </dev/null &"
SCENARIO = Scenario("virtiofs-dax", "none", "load", async_pf=True)


@pytest.mark.nightly
def test_a_guest_outlives_a_host_that_is_stopped_and_continued_all_the_time(
    tmp_path: Path,
) -> None:
    pauses = random.Random(1)
    with (
        heard_by(print),
        Lab(Settings(host="emulated")) as lab,
        lab.testbed(SCENARIO, tmp_path) as testbed,
    ):
        testbed.guest.run(BUSY, Deadline(20.0, "the guest to be busy"))
        machine = cast("Machine", cast("EmulatedLife", testbed.host).machine)
        for _ in range(STOPS):
            machine.recorder.execute("stop")
            machine.recorder.execute("cont")
            time.sleep(pauses.uniform(0.0, 0.005))  # it is to run for a random while
        said = testbed.guest.run("echo alive", Deadline(60.0, "the guest to answer"))
    assert said.text == "alive\n"
