"""Two verdicts side by side: what agrees, what differs, what is trouble."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hostfault.case.model import Scenario, VerdictKind
from hostfault.witness.compare import (
    AGREE,
    DIFFER,
    TROUBLE,
    Ours,
    Report,
    exit_code,
    rows_of,
    scenario_for,
    table,
)
from hostfault.witness.tap import SelftestResult

SPIN = SelftestResult("zero.apf-user.load", False, "spin", {"failed": "195"})
CONTROL = SelftestResult("late.apf-user.load", True, "ok", {"failed": "0"})
SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)


def report(
    *results: SelftestResult, ours: Ours | None = None, trouble: tuple[str, ...] = ()
) -> Report:
    said = ours or Ours(VerdictKind.SPIN)
    return Report(
        "7", rows_of("7", {each.name: each for each in results}, {SCENARIO: said}), trouble
    )


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        ("zero.apf-user.load", SCENARIO),
        ("zero.no-apf.load", replace(SCENARIO, async_pf=False)),
        ("middle.apf-user.store", replace(SCENARIO, fault="middle", access="store")),
        ("present.apf-user.load", replace(SCENARIO, fault="none")),
        ("zero.apf-kernel.load", None),
        ("zero.irqs-off.load", None),
        ("full.apf-user.load", None),
        ("late.apf-user.load", None),
    ],
)
def test_a_test_has_the_dax_case_that_does_the_same(name: str, scenario: Scenario | None) -> None:
    assert scenario_for(name) == scenario


def test_the_same_verdict_in_other_words_agrees() -> None:
    assert exit_code([report(SPIN, CONTROL)]) == AGREE
    ended = replace(SPIN, passed=True, verdict="exit")
    assert exit_code([report(ended, ours=Ours(VerdictKind.VM_EXIT))]) == AGREE


@pytest.mark.parametrize("kind", [kind for kind in VerdictKind if kind is not VerdictKind.SPIN])
def test_every_other_verdict_differs(kind: VerdictKind) -> None:
    assert exit_code([report(SPIN, CONTROL, ours=Ours(kind))]) == DIFFER


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_a_verdict_of_the_witness_that_has_no_counterpart_differs_from_all(
    kind: VerdictKind,
) -> None:
    assert exit_code([report(replace(SPIN, verdict="other"), ours=Ours(kind))]) == DIFFER


@pytest.mark.parametrize(
    ("troubled", "words"),
    [
        (report(SPIN, ours=Ours(None, "no boot")), "no boot"),
        (report(SPIN, replace(CONTROL, passed=False, verdict="spin")), "do not believe"),
        (report(replace(SPIN, verdict="", skipped="no tmpfs")), "no tmpfs"),
        (report(SPIN, trouble=("host: BUG: at once",)), "BUG: at once"),
        (Report("7", (), ("it did not boot",)), "it did not boot"),
    ],
)
def test_what_keeps_the_two_from_being_compared_is_trouble(troubled: Report, words: str) -> None:
    assert exit_code([report(SPIN), troubled]) == TROUBLE
    assert words in table([troubled])


def test_nothing_at_all_is_trouble_and_no_agreement() -> None:
    assert exit_code([]) == TROUBLE
    assert exit_code([Report("7", ())]) == TROUBLE


def test_a_difference_is_told_although_there_is_trouble_as_well() -> None:
    differs = report(SPIN, ours=Ours(VerdictKind.VM_EXIT), trouble=("host: Oops",))
    assert exit_code([differs]) == DIFFER


def test_the_table_shows_both_and_a_summary_of_each_kernel() -> None:
    text = table([report(SPIN, CONTROL)])
    assert text.splitlines()[1].split() == ["7", SPIN.name, "spin", "195", "spin", "agree"]
    assert text.splitlines()[2].split() == ["7", CONTROL.name, "ok", "0", "-"]
    assert re.findall(r"\d+", text.splitlines()[-1]) == ["7", "1", "0", "1"]
