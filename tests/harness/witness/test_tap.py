"""What the selftest prints, and what must not pass for its word."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.plumbing.errors import ProtocolError
from hostfault.witness.tap import parse

RECORDED = Path(__file__).parent / "recorded"
ONE = """\
TAP version 13
1..1
# zero.no-apf.load: verdict=spin errno=0 exit=none rip=touch
# zero.no-apf.load: runs=3 samples=3 attempts=202 failed=200 apf=0
# zero.no-apf.load: again=none undone=ok
not ok 1 zero.no-apf.load
"""


def test_a_recorded_run_of_a_stock_kernel_spins_wherever_kvm_may_look_asynchronously() -> None:
    results = parse((RECORDED / "7.3.4.tap").read_text())
    assert len(results) == 40
    for name, result in results.items():
        end = "exit" if ".irqs-off." in name else "spin"
        assert result.verdict == ("ok" if result.is_control else end), name


def test_all_that_a_test_says_of_itself_is_kept() -> None:
    result = parse(ONE)["zero.no-apf.load"]
    assert not result.passed
    assert (result.verdict, result.fields["failed"], result.fields["undone"]) == (
        "spin",
        "200",
        "ok",
    )


def test_lines_of_a_terminal_are_read_too() -> None:
    assert parse(ONE.replace("\n", "\r\n"))["zero.no-apf.load"].verdict == "spin"


def test_a_skip_has_its_reason_and_no_verdict() -> None:
    result = parse("1..1\nok 1 # SKIP full.no-apf.load: may not mount a tmpfs\n")
    assert result["full.no-apf.load"].skipped == "may not mount a tmpfs"
    assert result["full.no-apf.load"].verdict == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no plan"),
        ("1..0 # SKIP Requirement not met", "no test"),
        (ONE.replace("1..1", "1..2"), "planned 2 tests and told of 1"),
        (ONE.replace("verdict=spin", "verdict=dizzy"), "dizzy"),
        (ONE.replace("not ok", "ok"), "does not follow"),
        (ONE.replace("zero", "present").replace("spin", "exit"), None),
        ("1..1\nok 1 zero.no-apf.load\n", "the verdict ''"),
    ],
)
def test_what_is_broken_off_or_contradicts_itself_is_refused(text: str, words: str | None) -> None:
    if words is None:  # a control that failed, and says so
        assert not parse(text)["present.no-apf.load"].passed
        return
    with pytest.raises(ProtocolError, match=words):
        parse(text)
