"""Right, wrong and trouble; the table, the seeds, the exit code."""

from __future__ import annotations

import dataclasses

import pytest

from hostfault.check.matrix import (
    FINE,
    NOTHING,
    TROUBLE,
    WRONG,
    CheckedCase,
    Standing,
    exit_code,
    reason,
    report,
)

RIGHT = CheckedCase(
    seed="1/0",
    situation="spins",
    case="7.3.4: spins, zero, load, apf",
    truth="spin",
    silence=False,
    said="spin",
    words="64 failed attempts",
    seconds=3.0,
)


def said(word: str, **changes: object) -> CheckedCase:
    return dataclasses.replace(RIGHT, said=word, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "standing"),
    [
        (RIGHT, Standing.RIGHT),
        (said("ok"), Standing.WRONG),
        (said(NOTHING), Standing.TROUBLE),
        (said(""), Standing.TROUBLE),
        (said(NOTHING, silence=True), Standing.RIGHT),
        (said("", silence=True), Standing.TROUBLE),
        (said("stall", silence=True), Standing.WRONG),
        (said(NOTHING, truth=NOTHING), Standing.RIGHT),
        (said("", truth=NOTHING), Standing.TROUBLE),
        (said("spin", truth=NOTHING), Standing.WRONG),
    ],
)
def test_what_a_result_amounts_to(result: CheckedCase, standing: Standing) -> None:
    assert result.standing is standing


def test_one_wrong_verdict_among_a_thousand_fails() -> None:
    assert exit_code([RIGHT] * 999 + [said("ok")]) == WRONG


@pytest.mark.parametrize(
    ("troubles", "cases", "code"),
    [
        (0, 200, FINE),
        (1, 10, FINE),
        (2, 10, TROUBLE),
        (1, 200, FINE),
        (2, 200, TROUBLE),
        (5, 1000, FINE),
        (6, 1000, TROUBLE),
    ],
)
def test_half_a_percent_may_be_trouble_and_one_case_always(
    troubles: int, cases: int, code: int
) -> None:
    assert exit_code([said("")] * troubles + [RIGHT] * (cases - troubles)) == code


def test_the_matrix_has_a_cell_for_each_truth_and_what_was_said() -> None:
    text = report([RIGHT, RIGHT, said("ok"), said(""), said(NOTHING, truth=NOTHING)])
    rows = [line.split() for line in text.splitlines()]
    assert ["truth", "\\", "said", "nothing", "spin", "error", "ok"] in rows
    assert ["spin", ".", "2", "1", "1"] in rows
    assert ["nothing", "1", ".", ".", "."] in rows
    assert rows[-1] == ["5", "cases:", "3", "right,", "1", "wrong,", "1", "trouble"]


def test_a_wrong_case_is_named_so_that_it_can_be_run_again() -> None:
    assert "--case 7/42" in report([said("ok", seed="7/42")])


def test_trouble_is_counted_by_its_reason() -> None:
    like = [
        said("", words=f"DeadlineError: waited {seconds} s for SSH\nmore", seed=f"1/{seconds}")
        for seconds in (30.1, 60.4)
    ]
    text = report([*like, said("", words="LaunchError: QEMU ended", seed="1/9")])
    assert "2 x DeadlineError: waited N s for SSH: 1/30.1 1/60.4" in text
    assert "1 x LaunchError: QEMU ended: 1/9" in text


def test_a_reason_has_no_numbers_and_one_line() -> None:
    assert reason("waited 1.5 s at 0xf8008\nlast words") == "waited N s at N"
