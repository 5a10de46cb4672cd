"""Kills at random moments, and what ci/chaos says of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from nightly_suite import Suite

from hostfault.nightly.chaos import INSIDE, OUTSIDE, Chaos, Family, Process
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.process import spawn


def command(suite: Suite) -> list[str]:
    program = str(Path(__file__).with_name("nightly_suite.py"))
    return [sys.executable, program, str(suite.root.parent), "--set", "dax", "--kernels", "7.3.4"]


def chaos(suite: Suite, kills: int, seed: int = 3, kinds: Sequence[str] = OUTSIDE) -> Chaos:
    found = Chaos(suite.root / "chaos", command(suite), seed, kinds)
    found.run(kills, Deadline(240.0, "the kills"))
    return found


def test_kills_change_no_verdict_and_lose_and_leave_nothing(suite: Suite) -> None:
    suite.says({"*": {"*": "slowly known", "none-load-apf": "slowly ok"}})
    figures = chaos(suite, 4).figures
    assert len(figures.kills) == 4
    assert {kill.kind for kill in figures.kills} <= set(OUTSIDE) - {"qemu"}  # there is none here
    assert (figures.wrong, figures.lost, figures.left) == ([], [], [])
    assert figures.is_right


def test_what_was_killed_inside_the_host_is_counted_and_is_no_verdict(suite: Suite) -> None:
    suite.says({"*": {"*": "known"}})
    figures = chaos(suite, 2, kinds=INSIDE).figures
    assert {kill.kind for kill in figures.kills} <= set(INSIDE)
    assert figures.trouble == {"ConnectionLostError": len(figures.kills)}
    assert figures.is_right


def test_it_goes_on_where_it_was(suite: Suite) -> None:
    suite.says(
        {"*": {"*": "slowly known", "zero-load-apf": ["known", "known", "trouble", "known"]}}
    )
    chaos(suite, 1)
    again = chaos(suite, 2)
    assert len(again.figures.kills) == 2
    assert again.figures.trouble == {"ConnectionLostError": 1}
    assert len(list((suite.root / "chaos" / "undisturbed").glob("20*"))) == 2


def test_a_verdict_that_a_kill_changes_is_found(suite: Suite) -> None:
    # The first two runs are the undisturbed ones.
    suite.says(
        {"*": {"*": "slowly known", "zero-load-apf": ["known", "known", "slowly host-death"]}}
    )
    found = chaos(suite, 1)
    assert [line.partition(": ")[2] for line in found.figures.wrong] != []
    assert not found.figures.is_right
    assert any("host-death" in line for line in found.figures.lines())


def test_a_grandchild_is_family_even_when_its_parent_is_gone(tmp_path: Path) -> None:
    argv = ["sh", "-c", "setsid sh -c 'sleep 60 & wait' & wait"]
    with spawn(argv, log=tmp_path / "log") as child:
        family = Family(child.pid)

        def all_there() -> bool | None:
            family.look()
            return True if len(family.alive()) >= 2 else None

        poll(Deadline(20.0, "both generations"), all_there)
        child.kill()
        child.wait(10)
        left = family.alive()
        assert left
        for process in left:
            process.kill()
        poll(Deadline(20.0, "them to go"), lambda: True if not family.alive() else None)


def test_a_number_that_was_given_to_another_process_is_another_process() -> None:
    assert not Process(os.getpid(), started=1).is_alive()
