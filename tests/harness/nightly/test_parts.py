"""The parts of a night one by one: the plan, the kernels, what is read of a run, the words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hostfault.nightly import plan, plots
from hostfault.nightly.baseline import Entry, Expected, as_toml, read
from hostfault.nightly.kernels import check_out
from hostfault.nightly.news import Kind, judge
from hostfault.nightly.reading import read_run
from hostfault.nightly.results import Key, Result, Status, from_json, short, to_json
from hostfault.nightly.store import keep_seconds
from hostfault.nightly.summary import escape
from hostfault.plumbing.errors import UsageError

CASE = "tests/dax/test_truncate.py::test_truncate[virtiofs-dax-zero-load-apf]"


def result(outcome: Status = Status.PASSED, verdict: str = "task-error") -> Result:
    return Result("6.12", CASE, outcome, verdict=verdict)


# --- the plan ---


def test_kernels_have_labels() -> None:
    found = plan.kernels_of("7.3.4, 7.3.4+fail-at-once,next=tree:/src/linux@kvm/next,local")
    assert found == {
        "7.3.4": "7.3.4",
        "7.3.4+fail-at-once": "7.3.4+fail-at-once",
        "next": "tree:/src/linux@kvm/next",
        "local": "local",
    }


@pytest.mark.parametrize("text", ["", ",", "7.3.4,7.3.4", "=7.3.4", "next="])
def test_kernels_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        plan.kernels_of(text)


def test_a_kernel_that_is_too_dear_does_not_keep_out_a_cheap_one() -> None:
    dear, cheap = Key("a", "x"), Key("b", "x")
    costs = plan.Costs({dear: 500.0, cheap: 2.0})
    assert plan.next_batch([dear, cheap], 60.0, costs) == [cheap]


def test_a_batch_is_of_one_kernel_and_in_order() -> None:
    keys = [Key("a", "1"), Key("a", "2"), Key("b", "1"), Key("a", "3")]
    costs = plan.Costs(by_case=dict.fromkeys("123", 1.0))
    assert plan.next_batch(keys, 100.0, costs) == keys[:2]
    assert plan.next_batch(keys, plan.START + 1.5, costs) == keys[:1]
    assert plan.next_batch(keys, 100.0, costs, alone={"a"}) == keys[:1]
    assert plan.next_batch(keys, plan.START, costs) == []
    dear_first = plan.Costs({keys[0]: 500.0}, costs.by_case)
    assert plan.next_batch(keys, 100.0, dear_first) == keys[1:2]


def test_what_was_left_comes_first_if_it_is_still_wanted() -> None:
    cells = [Key("a", "1"), Key("a", "2")]
    left = [Key("gone", "1"), Key("a", "2")]
    assert plan.in_order(cells, left) == [Key("a", "2"), Key("a", "1")]


def test_there_are_no_more_workers_than_cores_and_memory_allow() -> None:
    gigabyte = 1 << 30
    assert plan.workers(8, cores=4, memory=64 * gigabyte) == 4
    assert plan.workers(8, cores=16, memory=5 * gigabyte) == 2
    assert plan.workers(2, cores=16, memory=64 * gigabyte) == 2
    assert plan.workers(4, cores=1, memory=gigabyte) == 1


@pytest.mark.parametrize(("text", "hours"), [("30d", 720), ("8w", 1344), ("12h", 12)])
def test_how_long_nights_are_kept(text: str, hours: int) -> None:
    assert keep_seconds(text) == hours * 3600
    with pytest.raises(UsageError, match="give a number and a unit"):
        keep_seconds(text[:-1])


# --- kernels from a repository ---


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "linux"
    git(tmp_path, "init", "--quiet", str(place))
    for number in (1, 2):
        (place / "Makefile").write_text(f"VERSION = {number}\n")
        git(place, "add", "Makefile")
        git(place, "commit", "--quiet", "--message", str(number))
        git(place, "tag", f"v{number}")
    return place


def git(place: Path, *words: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", str(place), *name, *words], check=True)


def test_a_commit_is_checked_out_beside_the_repository(repository: Path, tmp_path: Path) -> None:
    trees = tmp_path / "trees"
    for number in (1, 2, 1):
        wanted = {"next": f"tree:{repository}@v{number}", "7.3.4": "7.3.4"}
        kernels, notes = check_out(wanted, trees)
        assert kernels == {"next": f"tree:{trees}/next", "7.3.4": "7.3.4"}
        assert (trees / "next" / "Makefile").read_text() == f"VERSION = {number}\n"
        assert len(notes) == 1
        assert f"next is v{number} of {repository}, commit " in notes[0]
    assert (repository / "Makefile").read_text() == "VERSION = 2\n"


@pytest.mark.parametrize("ref", ["v3", "--upload-pack=x"])
def test_a_commit_that_is_not_there_is_told(repository: Path, tmp_path: Path, ref: str) -> None:
    with pytest.raises(UsageError, match=f"has no {ref}"):
        check_out({"next": f"tree:{repository}@{ref}"}, tmp_path / "trees")


# --- reading ---


def write_run(run: Path, *reports: dict[str, object] | str) -> None:
    run.mkdir(parents=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in reports]
    (run / "report.jsonl").write_text("\n".join(lines))


def report(when: str, outcome: str = "passed", **more: object) -> dict[str, object]:
    kind = {"$report_type": "TestReport", "nodeid": CASE, "start": 5.0, "duration": 1.0}
    return kind | {"when": when, "outcome": outcome, "longrepr": None} | more


def test_a_log_that_ends_in_the_middle_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    whole = [report(when) for when in ("setup", "call", "teardown")]
    write_run(run, *whole, {**report("setup"), "nodeid": "other"}, '{"$report_type": "TestRep')
    [found] = read_run(run, tmp_path, "6.12", {CASE: 1})
    assert (found.case, found.attempt, found.outcome) == (CASE, 2, Status.PASSED)
    assert (found.began, found.seconds) == (5.0, 3.0)


def test_a_test_without_its_tear_down_has_not_ended(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    write_run(run, report("setup"), report("call"))
    assert read_run(run, tmp_path, "6.12", {}) == []


def test_a_passed_test_whose_tear_down_fails_is_trouble(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    crash = {"reprcrash": {"message": "Failed: harness trouble (LaunchError): no more"}}
    write_run(run, report("setup"), report("call"), report("teardown", "failed", longrepr=crash))
    [found] = read_run(run, tmp_path, "6.12", {})
    assert (found.outcome, found.reason) == (Status.HARNESS, "LaunchError")


def test_a_pass_in_spite_of_a_known_issue_is_a_pass(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    folder = run / "tests" / "somewhere"
    write_run(
        run,
        report("setup"),
        report("call", "failed", longrepr="[XPASS(strict)] known issue kvm-apf-error"),
        report("teardown"),
    )
    folder.mkdir(parents=True)
    record = {"verdict": "task-error", "test": CASE, "summary": "SIGBUS", "new key": [1]}
    (folder / "verdict.json").write_text(json.dumps(record))
    [found] = read_run(run, tmp_path, "6.12", {})
    assert (found.outcome, found.word) == (Status.PASSED, "task-error")
    assert found.record["new key"] == [1]
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


def test_pytests_own_time_out_is_one(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "001"
    crash = {"reprcrash": {"message": "Failed: Timeout (>900.0s) from pytest-timeout."}}
    write_run(run, report("setup", "failed", longrepr=crash), report("teardown"))
    [found] = read_run(run, tmp_path, "6.12", {})
    assert (found.outcome, found.reason) == (Status.TIMEOUT, "pytest-timeout")


# --- judging ---


@pytest.mark.parametrize(
    ("before", "rank", "now", "kind"),
    [
        ("task-error", 0, result(), None),
        ("ok", 0, result(), Kind.CHANGED),
        ("task-error", 0, result(verdict="vm-exit"), Kind.WORSE),
        ("vm-exit", 1, result(), Kind.BETTER),
        ("spin", 2, result(Status.KNOWN, "spin"), None),
        ("spin", 2, result(Status.FAILED, "spin"), None),
        ("spin", 2, result(Status.FAILED, "stall"), Kind.WORSE),
        ("vm-exit", 1, result(Status.KNOWN, "spin"), Kind.WORSE),
        ("spin", 2, result(Status.HARNESS, ""), Kind.TROUBLE),
        ("spin", 2, result(Status.SKIPPED, ""), Kind.LOST),
        # A control that got the wrong error, where it had got the right one.
        ("task-error", 0, result(Status.FAILED), Kind.WORSE),
    ],
)
def test_what_is_news(before: str, rank: int, now: Result, kind: Kind | None) -> None:
    assert judge(now, Expected(before, rank, "last night")) is kind


def test_a_file_of_expectations_survives_awkward_words(tmp_path: Path) -> None:
    entry = Entry(CASE, "spin", kernel='a "b"\n\x7f\\', reason="because\tof é", link="")
    path = tmp_path / "baseline.toml"
    path.write_text(as_toml([entry]))
    assert read(path) == [entry]


# --- words and plots ---


def test_cases_have_short_names() -> None:
    assert short(CASE) == "truncate virtiofs-dax-zero-load-apf"
    assert short("tests/dax/test_x.py::test_plain") == "plain"
    assert short("no test") == "no test"


def test_no_word_of_a_guest_is_markdown() -> None:
    assert escape("a|b `c` <i>\n# d \x1b[1m") == r"a\|b \`c\` \<i\> \# d \[1m"


def test_the_share_of_a_core_is_between_two_samples() -> None:
    assert plots.shares([0.0, 1.0, 1.5, 1.5], [5.0, 5.5, 6.0, 6.0]) == [0.5, 1.0, 0.0]


def test_faults_are_those_on_the_frame_that_was_touched() -> None:
    def sample(at: float, *counts: tuple[int, int]) -> dict[str, object]:
        faults = [{"gfn": gfn, "rip": 1, "count": count} for gfn, count in counts]
        return {"at": at, "faults": faults, "vcpu_seconds": at, "run_state": "running"}

    samples = [sample(0.0, (7, 2)), sample(1.0, (7, 2), (9, 5), (9, 1)), sample(2.0, (9, 90))]
    found = plots.series_of({"expected_gfn": 9, "samples": samples})
    assert found is not None
    assert found.faults == [0, 6, 90]
    assert plots.series_of({"samples": samples[:1]}) is None
    assert plots.series_of({}) is None


def test_a_plot_escapes_what_a_guest_called_its_events() -> None:
    pytest.importorskip("matplotlib")
    event = (0.5, "</svg><script>x</script> $\\frac{")
    series = plots.TimeSeries([0.0, 1.0], [0, 1], [0.0, 1.0], ["running", "<paused>"], [event])
    svg = plots.of_case(series, "c1")
    assert "<script" not in svg
    assert svg.count("</svg>") == 1
    assert 'id="c1-' in svg
