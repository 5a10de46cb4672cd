"""Random cases: a seed brings each back, and every situation can be brought about."""

from __future__ import annotations

import subprocess
from collections import Counter
from itertools import pairwise

import pytest

from hostfault.access import ACCESSES
from hostfault.backing import BACKINGS
from hostfault.case.model import Scenario, Terms, VerdictKind
from hostfault.check import acts, liar, plan
from hostfault.fault import FAULTS, require
from hostfault.kernel import series

LOAD = Terms(takes_page=True, control=False, writes=False, by_kernel=False, expected=None)


def test_a_seed_brings_its_case_back() -> None:
    assert plan.case_of("1/57") == plan.case_of("1/57")
    assert plan.cases(1, 50, 10)[7] == plan.case_of("1/57")


def test_seeds_make_different_cases() -> None:
    assert len({str(case) for case in plan.cases(1, 0, 200)}) > 100
    assert plan.cases(1, 0, 20) != plan.cases(2, 0, 20)


def test_two_hundred_cases_meet_nearly_every_situation_and_disturbance() -> None:
    planned = plan.cases(1, 0, 200)
    assert len({case.situation.name for case in planned}) >= len(plan.SITUATIONS) * 3 / 4
    assert {case.disturbance for case in planned} == set(acts.DISTURBANCES)


def test_every_verdict_is_the_truth_of_some_situation_and_so_is_none() -> None:
    assert {each.truth for each in plan.SITUATIONS} == {*VerdictKind, None}


def test_what_takes_half_a_minute_is_rare() -> None:
    """A case in which nothing may be proven lasts until the observer's deadline."""
    slow = sum(each.weight for each in plan.SITUATIONS if each.truth is None)
    assert slow / sum(each.weight for each in plan.SITUATIONS) < 0.15


def test_everything_that_is_planned_can_be_done() -> None:
    assert {each.name for each in plan.SITUATIONS} == set(acts.SITUATIONS)
    for each in plan.SITUATIONS:
        assert set(each.disturbances) <= set(acts.DISTURBANCES)
    assert set(acts.DEFECTS) <= {each.name for each in plan.SITUATIONS}


def test_every_scenario_is_one_that_its_backing_can_have() -> None:
    for scenario in plan.scenarios():
        assert ACCESSES[scenario.access]
        assert not require(FAULTS[scenario.fault], BACKINGS[scenario.backing])


def test_every_kernel_has_its_patch_series() -> None:
    known = series.load()
    for kernel in {kernel for each in plan.SITUATIONS for kernel in each.kernels}:
        version, _, name = kernel.partition("+")
        if name:
            numbers = tuple(int(part) for part in version.split("."))
            assert known[name].patches_for(numbers)


def test_cases_of_one_machine_are_neighbours() -> None:
    ordered = plan.in_order(plan.cases(3, 0, 60))
    machines = [(c.kernel, c.scenario.backing, c.scenario.async_pf) for c in ordered]
    changes = sum(one != other for one, other in pairwise(machines))
    assert changes == len(set(machines)) - 1
    assert Counter(machines) == Counter(
        (c.kernel, c.scenario.backing, c.scenario.async_pf) for c in plan.cases(3, 0, 60)
    )


def situation(name: str) -> plan.Situation:
    return next(each for each in plan.SITUATIONS if each.name == name)


def test_a_page_that_comes_back_must_be_seen_as_zeroes_or_hold_what_is_stored() -> None:
    back = plan.case_of("1/1", [situation("regrown")])
    assert acts.terms_of(back, LOAD).expected == 0
    stores = Terms(takes_page=True, control=False, writes=True, by_kernel=False, expected=None)
    assert acts.terms_of(back, stores) == stores


def test_the_scenario_of_a_case_is_drawn_from_its_situation() -> None:
    case = plan.case_of("9/9", [situation("loses-the-wakeup")])
    assert case.scenario.async_pf
    assert isinstance(case.scenario, Scenario)
    assert case.scenario.access in plan.USER


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ('{"step":"touching"}\n', '{"step":"touching"}\n' + liar.LIE + "\n"),
        ('{"step":"armed"}\n', '{"step":"armed"}\n'),
    ],
)
def test_the_liar_claims_an_outcome_as_soon_as_the_probe_touches(said: str, heard: str) -> None:
    command = liar.lying(f"{liar.PROBE}--file x").replace(f"{liar.PROBE}--file x", "cat")
    got = subprocess.run(
        ["sh", "-c", command], input=said, capture_output=True, text=True, check=True
    )
    assert got.stdout == heard


def test_the_liar_leaves_other_programs_alone() -> None:
    assert liar.lying("truncate -s 0 /mnt/data") == "truncate -s 0 /mnt/data"
