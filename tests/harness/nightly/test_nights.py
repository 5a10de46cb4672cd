"""Whole nights with a suite that pretends: what is news, what is left, what survives a kill."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from nightly_suite import CASES, Suite

from hostfault.nightly import lock, plan
from hostfault.nightly.__main__ import main
from hostfault.nightly.night import resumed
from hostfault.nightly.results import LOCAL, Status
from hostfault.nightly.soak import Soak
from hostfault.plumbing.deadline import Deadline, poll

STOCK = {"*": "known", "none-load-apf": "ok"}


def words_of(suite: Suite) -> dict[str, str]:
    return {each.case.rpartition("dax-")[2].rstrip("]"): each.word for each in suite.results()}


# --- a soak ---


def test_a_soak_is_night_after_night_and_counts_the_trouble_that_a_second_look_mended(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "START", 0.0)
    monkeypatch.setattr(plan, "UNKNOWN_CASE", 0.1)
    suite.says({"*": STOCK | {"zero-load-apf": ["trouble", "known"]}})
    assert suite.night("--soak", "--minutes", "0.3") == 0
    said = capsys.readouterr().out.splitlines()
    assert "1 x ConnectionLostError" in said[-1]
    assert said[-4].startswith(f"{len(suite.store.nights())} nights")


def test_a_soak_in_which_something_got_worse_fails() -> None:
    bad, good, trouble = (Soak(codes, ()) for codes in ((0, 3, 1), (0, 0), (3, 0)))
    assert (bad.code, good.code, trouble.code) == (1, 0, 3)


# --- news and the exit code ---


def test_a_first_night_in_which_only_known_issues_are_bad_is_green(suite: Suite) -> None:
    suite.says({"7.3.4": STOCK})
    assert suite.night() == 0
    assert words_of(suite) == dict.fromkeys(CASES, "spin") | {"none-load-apf": "ok"}
    assert "nothing new" in suite.file("summary.md")


def test_the_second_night_names_the_one_that_flipped_and_nothing_else(suite: Suite) -> None:
    suite.says({"*": STOCK})
    assert suite.night(kernels="7.3.4,6.12") == 0
    suite.says({"*": STOCK, "6.12": {"zero-store-apf": "vmm-death"}})
    assert suite.night(kernels="7.3.4,6.12") == 1
    summary = suite.file("summary.md")
    rows = [line for line in summary.splitlines() if line.startswith("| ") and "case" not in line]
    assert len(rows) == 1
    assert "6.12 | truncate virtiofs-dax-zero-store-apf | spin | **vmm-death**" in rows[0]
    assert [case for case in CASES if case in summary] == ["zero-store-apf"]


def test_a_failure_without_a_baseline_is_worse_than_nothing(suite: Suite) -> None:
    suite.says({"*": {"zero-load-apf": "spin"}})
    assert suite.night() == 1


def test_an_improvement_is_said_and_does_not_fail(suite: Suite) -> None:
    suite.says({"*": STOCK})
    assert suite.night() == 0
    suite.says({"*": STOCK | {"zero-load-apf": "task-error"}})
    assert suite.night() == 0
    assert "### Better" in suite.file("summary.md")
    suite.says({"*": STOCK})  # and it is what the next night has to keep
    assert suite.night() == 1


def test_what_is_worse_stays_so_until_it_is_accepted(suite: Suite) -> None:
    assert suite.night() == 0
    suite.says({"*": {"zero-load-apf": "spin"}})
    first = suite.night()
    name = suite.last.name
    assert (first, suite.night()) == (1, 1)
    assert f"| {name} |" in suite.file("summary.md")
    accepting = ["--results", str(suite.store.root), "--accept-as-baseline", "--reason", "known"]
    assert main(accepting) == 0
    assert suite.night() == 0


def test_trouble_of_the_harness_alone_is_three_and_no_news_of_the_kernel(suite: Suite) -> None:
    assert suite.night() == 0
    suite.says({"*": {"zero-load-apf": "trouble", "zero-store-apf": "waits"}})
    assert suite.night() == 3
    summary = suite.file("summary.md")
    assert "### Worse" not in summary
    assert "2 times ConnectionLostError: the agent went away" in summary  # tried twice
    outcomes = {each.outcome for each in suite.results()}
    assert outcomes == {Status.PASSED, Status.HARNESS, Status.TIMEOUT}


def test_a_test_that_breaks_by_itself_is_not_the_kernels_fault(suite: Suite) -> None:
    suite.says({"*": {"zero-load-apf": "breaks"}})
    assert suite.night() == 3
    assert [each.reason for each in suite.results() if each.outcome is Status.BROKEN] == [
        "KeyError",
        "KeyError",
    ]


def test_a_first_fail_that_passes_when_retried_is_a_flake_and_is_counted(suite: Suite) -> None:
    assert suite.night() == 0
    suite.says({"*": {"zero-load-apf": ["spin", "task-error"]}})
    assert suite.night() == 0
    summary = suite.file("summary.md")
    assert "### Flakes" in summary
    assert "spin → task-error (in 1 of 2 nights)" in summary


def test_what_is_bad_as_before_is_not_run_twice(suite: Suite) -> None:
    suite.says({"*": {"zero-load-apf": "spin"}})
    suite.night()
    assert len(suite.results()) == len(CASES) + 1
    suite.night("--baseline", suite.last.name)
    assert len(suite.results()) == len(CASES)


def test_a_case_that_ran_before_and_is_skipped_now_is_missed(suite: Suite) -> None:
    assert suite.night() == 0
    suite.says({"*": {"zero-load-apf": "skip"}})
    assert suite.night() == 3
    assert "Skipped, but ran before" in suite.file("summary.md")


def test_a_set_that_is_skipped_as_a_whole_is_not_green(suite: Suite) -> None:
    suite.says({"*": {"*": "skip"}})
    assert suite.night() == 3


def test_a_kernel_that_does_not_exist_is_told_in_pytests_words(suite: Suite) -> None:
    assert suite.night(kernels="9.9,7.3.4") == 3
    assert re.search(r"'9\.9'.*\b7\.3\.4\b", suite.file("summary.md"))
    assert sum(each.outcome is Status.PASSED for each in suite.results()) == len(CASES)


# --- the baseline file ---


def test_a_local_stock_kernel_is_green_while_it_spins_as_accepted(suite: Suite) -> None:
    suite.says({LOCAL: {"*": "spin", "none-load-apf": "ok"}})
    assert suite.night(kernels=LOCAL) == 1
    path = suite.store.root / "mine.toml"
    words = ["--results", str(suite.store.root), "--accept-as-baseline", str(path)]
    assert main([*words, "--reason", 'stock "spins"', "--link", "https://example.org/1"]) == 0
    assert suite.night(kernels=LOCAL) == 0
    assert suite.night("--baseline", str(path), kernels=LOCAL) == 0
    suite.says({LOCAL: {"*": "spin", "none-load-apf": "ok", "zero-load-apf": "host-death"}})
    assert suite.night("--baseline", str(path), kernels=LOCAL) == 1


def test_neighbouring_packaged_kernels_share_an_entry(suite: Suite) -> None:
    suite.says({"*": {"*": "known"}, "6.12.5": {"zero-load-apf": "vm-exit"}, "7.3.4+x": {}})
    suite.night(kernels="6.1.3,6.12.5,7.3.4,7.3.4+x")
    assert main(["--results", str(suite.store.root), "--accept-as-baseline"]) == 0
    tables = tomllib.loads((suite.store.root / "baseline.toml").read_text())["expected"]
    of_case = [each for each in tables if "zero-store-apf" in each["case"]]
    assert [each.get("kernels", each.get("kernel")) for each in of_case] == [
        "7.3.4+x",
        {"first": "6.1.3", "last": "7.3.4"},
    ]
    assert len([each for each in tables if "zero-load-apf" in each["case"]]) == 4


@pytest.mark.parametrize(
    "text", ["[[expected]]\ncase = 1", "expected = 3", "not toml", '[[expected]]\nverdict="x"']
)
def test_a_baseline_that_makes_no_sense_is_told_before_anything_runs(
    suite: Suite, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = suite.root / "bad.toml"
    path.write_text(text)
    assert suite.night("--baseline", str(path)) == 2
    assert f"--baseline {path}" in capsys.readouterr().err
    assert suite.began() == []


# --- the budget ---


def test_what_has_no_time_is_said_and_comes_first_in_the_next_night(suite: Suite) -> None:
    # 15 s for pytest and 60 s for a test that was never run: one fits, and then nothing does.
    minutes = ("--minutes", "1.2505")
    assert suite.night(*minutes) == 0
    assert suite.began() == ["7.3.4 virtiofs-dax-none-load-apf"]
    assert len(suite.last.left) == 3
    assert " 3 of 4" in suite.file("summary.md")
    suite.night(*minutes)
    # Those that were left come first, and the one whose cost is known by now fits as well.
    begun = [line.rpartition("dax-")[2] for line in suite.began()[1:]]
    assert begun == ["zero-load-apf", "none-load-apf"]


def test_a_night_is_over_when_its_minutes_are(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "START", 0.5)
    assert suite.night() == 0  # now the costs are known, and small
    suite.says({"*": {"zero-load-apf": "hangs"}})
    suite.night("--minutes", "0.1")
    assert any(key.case.endswith("zero-load-apf]") for key in suite.last.left)
    assert suite.last.spent < 30


# --- kills ---


def start(suite: Suite, *words: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, str(Path(__file__).with_name("nightly_suite.py"))]
    return subprocess.Popen(
        [*argv, str(suite.root.parent), *suite.words(*words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def until_it_hangs(suite: Suite) -> None:
    deadline = Deadline(60, "the test that hangs")
    poll(deadline, lambda: (suite.root / "hangs").exists() or None)


def test_the_time_of_a_run_that_was_killed_counts(suite: Suite) -> None:
    suite.night()
    night = dataclasses.replace(suite.last, spent=10.0, finished=0.0)
    suite.store.save(night)
    folder = suite.store.folder(night.name)
    run = folder / "runs" / "009-7.3.4"
    run.mkdir()
    (run / "report.jsonl").touch()
    note = run.with_name("009-7.3.4.json")
    note.write_text("{}")
    begun = (folder / "night.json").stat().st_mtime + 1
    os.utime(note, (begun, begun))
    os.utime(run / "report.jsonl", (begun + 42, begun + 42))
    assert resumed(night, suite.store).spent == pytest.approx(52.0)
    suite.store.save(night)  # now the run is counted
    os.utime(folder / "night.json", (begun + 60, begun + 60))
    assert resumed(night, suite.store).spent == 10.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_night_that_was_killed_goes_on_where_it_was(suite: Suite, number: int) -> None:
    suite.says({"*": {"zero-store-apf": ["hangs", "task-error"]}})
    with start(suite) as child:
        until_it_hangs(suite)
        os.kill(child.pid, number)
        child.wait(60)
    assert not suite.last.finished
    assert suite.night() == 0
    assert len(suite.store.nights()) == 1
    begun = [line.rpartition("dax-")[2] for line in suite.began()]
    assert begun.count("none-load-apf") == 1  # what had been reported counts
    assert begun.count("zero-store-apf") == 2
    assert sorted(words_of(suite)) == sorted(CASES)
    assert suite.last.spent > 0


def test_a_stopped_night_that_is_not_gone_on_with_keeps_what_it_had(suite: Suite) -> None:
    suite.says({"7.3.4": {"zero-store-apf": "hangs"}})
    with start(suite) as child:
        until_it_hangs(suite)
        child.kill()
        child.wait(60)
    assert suite.night(kernels="6.12") == 0
    first, second = suite.store.nights()
    assert first.finished
    assert second.finished
    assert len(suite.store.results(first.name)) == 2


def test_two_runs_do_not_meet(suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    with lock.held(suite.store.root / "lock", "ci/nightly --set dax"):
        assert suite.night() == 3
    said = capsys.readouterr().err
    assert re.search(
        rf"lock is held by process {os.getpid()} of \w+ on \S+ since .*--set dax", said
    )
    assert suite.night() == 0


def test_a_test_that_kills_pytest_is_found_and_does_not_take_the_others_along(
    suite: Suite,
) -> None:
    suite.says({"*": {"zero-load-apf": "dies"}})
    assert suite.night() == 3
    lost = [each for each in suite.results() if each.outcome is Status.HARNESS]
    assert {each.case.rpartition("dax-")[2] for each in lost} == {"zero-load-apf]"}
    assert lost[0].reason == "pytest ended with code -9"
    passed = [each for each in suite.results() if each.outcome is Status.PASSED]
    assert len(passed) == len(CASES) - 1


# --- several at a time ---


def test_two_workers_find_what_one_finds_and_run_nothing_twice(suite: Suite) -> None:
    suite.says({"*": STOCK | {"zero-load-apf": "slowly known"}})
    assert suite.night("--", "-n", "2", "--dist", "load") == 0
    assert words_of(suite) == dict.fromkeys(CASES, "spin") | {"none-load-apf": "ok"}
    assert len(suite.began()) == len(CASES)
    assert all(each.folder for each in suite.results())


def test_a_worker_that_dies_does_not_take_the_others_along(suite: Suite) -> None:
    suite.says({"*": {"zero-load-apf": ["dies", "task-error"]}})
    suite.night("--", "-n", "2", "--dist", "load")
    assert set(words_of(suite).values()) == {"task-error"}


# --- the store ---


def test_old_nights_go_but_not_what_is_compared_to(suite: Suite) -> None:
    assert suite.night() == 0
    green = suite.last
    suite.says({"*": {"zero-load-apf": "spin"}})
    assert suite.night() == 1
    red = suite.last
    for night in (green, red):
        suite.store.save(dataclasses.replace(night, began=night.began - 40 * 86400))
    assert suite.night("--keep", "30d") == 1
    assert green.name in suite.store.names()
    assert red.name not in suite.store.names()


def test_evidence_can_be_read_before_and_after_it_is_packed(suite: Suite) -> None:
    suite.night()
    result = suite.results()[0]
    assert [path.suffix for path in (suite.store.folder(suite.last.name) / "runs").iterdir()] != []
    assert not any(
        path.is_dir() for path in (suite.store.folder(suite.last.name) / "runs").iterdir()
    )
    text = suite.store.evidence(suite.last.name).text(result, "registers.txt")
    assert text == "RIP=00000000004016b5\n"


def test_a_second_night_of_a_day_has_a_number(suite: Suite) -> None:
    suite.night()
    suite.night()
    first, second = suite.store.names()
    assert second == f"{first}.2"


def test_shards_together_are_the_set_and_merge_to_one_night(suite: Suite) -> None:
    places = [suite.store.root.parent / name for name in ("a", "b")]
    for number, place in enumerate(places, start=1):
        suite.night("--shard", f"{number}/2", "--results", str(place))
    assert len(suite.began()) == len(CASES)
    merging = ["--results", str(suite.store.root), "--merge", *map(str, places)]
    assert main(merging) == 0
    assert sorted(words_of(suite)) == sorted(CASES)
    evidence = suite.store.evidence(suite.last.name)
    assert all(evidence.text(each, "registers.txt") for each in suite.results())
