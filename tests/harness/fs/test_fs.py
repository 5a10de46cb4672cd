"""The suites of others: how they are built, run, and understood."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.fs import send, suites
from hostfault.fs.__main__ import (
    Part,
    TimeIsUpError,
    left_of,
    main,
    pjdfstest_parts,
    read_outcomes,
    run_part,
)
from hostfault.fs.suites import PartOutcome, read_fsx, read_tap
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    LaunchError,
    UsageError,
)

PROGRAM = '#include "config.h"\n#include <stdio.h>\nint main(void) { return !(HAVE_OPENAT); }\n'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree that looks like pjdfstest's."""
    tree = tmp_path / "source"
    for folder, count in (("chmod", 2), ("link", 1)):
        (tree / "tests" / folder).mkdir(parents=True)
        for number in range(count):
            (tree / "tests" / folder / f"{number:02}.t").write_text("echo 1..1; echo ok 1\n")
    (tree / "pjdfstest.c").write_text(PROGRAM)
    return tree


def test_a_program_and_its_tests_are_packed(source: Path, tmp_path: Path) -> None:
    data = suites.pjdfstest_archive(source, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-C", out, "-xzf", "-"], input=data, check=True)
    assert (out / "pjdfstest/tests/chmod/01.t").is_file()
    program = out / "pjdfstest/pjdfstest"
    assert subprocess.run([program], check=False).returncode == 0


def test_each_directory_of_tests_is_a_part(source: Path) -> None:
    assert [part.name for part in pjdfstest_parts(source)] == [
        "pjdfstest chmod",
        "pjdfstest link",
    ]
    assert [part.name for part in pjdfstest_parts(source, ["link/00"])] == ["pjdfstest link"]


def test_what_does_not_compile_or_is_not_there_says_so(source: Path, tmp_path: Path) -> None:
    (source / "pjdfstest.c").write_text("no C\n")
    with pytest.raises(LaunchError, match=r"compiling pjdfstest\.c"):
        suites.pjdfstest_archive(source, tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        suites.fsx_program(source, tmp_path)
    with pytest.raises(UsageError, match="has no tests"):
        suites.pjdfstest_files(tmp_path)


def test_a_command_line_without_a_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "--pjdfstest DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "verdict", "detail"),
    [
        ("echo 1..2; echo ok 1; echo ok 2 '# TODO x'", "passed", "2"),
        ("echo 1..2; echo ok 1; echo 'not ok 2 # TODO x'", "passed", "2"),
        ("echo 1..2; echo ok 1; echo 'not ok 2 - tried x'", "failed", "1 of 2: not ok 2 - tried x"),
        ("echo 1..2; echo ok 1", "failed", "1 of 2: some are missing"),
        ("echo '1..0 # SKIP no such thing'", "skipped", "SKIP no such thing"),
        ("echo sh: bad thing", "failed", "no plan or no end"),
        ("echo 1..1; echo ok 1; echo not okay >&2", "failed", "1 of 1: not okay"),
        ("echo 1..30; for n in $(seq 30); do echo not ok $n; done", "failed", "0 of 30: not ok 1;"),
    ],
)
def test_a_test_is_summed_up_by_its_own_words(
    tmp_path: Path, script: str, verdict: str, detail: str
) -> None:
    """By the line of shell that runs in a guest."""
    test = tmp_path / "tests" / "x.t"
    test.parent.mkdir()
    test.write_text(script)
    line = suites.pjdfstest_command("x.t", str(tmp_path)).replace("/tmp/pjdfstest", str(tmp_path))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    outcome = read_tap("x.t", done.stdout)
    assert (outcome.verdict, outcome.name) == (verdict, "x.t")
    assert detail in outcome.detail
    assert len(outcome.detail) < 1000


def test_a_guest_that_says_nothing_has_failed() -> None:
    assert read_tap("x.t", "").verdict == "failed"


def test_a_run_of_fsx_passes_by_its_exit_code(tmp_path: Path) -> None:
    assert read_fsx("direct", 0, "All 10 operations completed") == PartOutcome(
        "fsx", "direct", "passed", ""
    )
    failed = read_fsx("direct", 101, "READ BAD DATA")
    assert failed.verdict == "failed"
    assert "101" in failed.detail
    assert "READ BAD DATA" in failed.detail


def test_the_exit_code_of_fsx_reaches_us(tmp_path: Path) -> None:
    (tmp_path / "fsx").write_text("#!/bin/sh\necho words; exit 7\n")
    (tmp_path / "fsx").chmod(0o755)
    line = suites.fsx_command("", str(tmp_path / "mnt"), 10, 1).replace("cd /tmp", f"cd {tmp_path}")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "words\n")


def test_every_failure_is_in_the_table() -> None:
    outcomes = [
        PartOutcome("pjdfstest", "a", "passed", "9"),
        PartOutcome("pjdfstest", "b", "failed", "8 of 9"),
        PartOutcome("fsx", "c", "skipped", ""),
    ]
    lines = suites.table(outcomes).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["pjdfstest", "1", "1", "0", "0"],
        ["fsx", "0", "0", "1", "0"],
    ]
    assert lines[3] == "pjdfstest b: 8 of 9"


class Host:
    """An agent of this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, path: str, text: str) -> None:
        (self._directory / path).write_text(text)


class Guest:
    """A shell of this machine."""

    def check(self, command: str, deadline: Deadline) -> str:
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=10, check=False
        )
        if done.returncode != 0:
            raise HostfaultError(done.stderr)
        return done.stdout


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A host and a guest that share a directory."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(send, "MOUNT_POINT", str(tmp_path / "shared"))
    monkeypatch.setattr(send, "HERE", str(tmp_path / "sent"))
    return Host(tmp_path), Guest()


def test_a_program_arrives_whole_and_can_be_run(machines: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "a program"
    data = b"#!/bin/sh\nexit 3\n" + bytes(range(256)) * 1000
    send.send_program(*machines, data, str(path), Deadline(10.0, "it to be sent"))
    assert path.read_bytes() == data
    assert subprocess.run([path], check=False).returncode == 3
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_tree_arrives_whole(machines: tuple[Any, Any], source: Path, tmp_path: Path) -> None:
    archive = suites.pjdfstest_archive(source, tmp_path)
    where = str(tmp_path / "out")
    send.send_tree(*machines, archive, where, Deadline(10.0, "it to be sent"))
    assert (tmp_path / "out" / "pjdfstest" / "tests" / "chmod" / "00.t").exists()


def test_a_guest_without_room_says_so(machines: tuple[Any, Any]) -> None:
    with pytest.raises(HostfaultError, match="No space left"):
        send.send_program(*machines, bytes(100_000), "/dev/full", Deadline(10.0, "it"))


class Bed:
    """A test bed whose guest may be lost, and whose back-end may have logged a bug."""

    def __init__(self, log: str = "") -> None:
        self.agent = self
        self._log = log

    def tails(self, paths: list[str], limit: int) -> list[str]:
        return [self._log]


class Beds:
    """A lab; hands out beds, one after the other."""

    def __init__(self, log: str = "") -> None:
        self._log = log
        self.lent = 0

    @contextmanager
    def testbed(self, scenario: Any, folder: Path) -> Iterator[Bed]:
        self.lent += 1
        yield Bed(self._log)


RESET = ConnectionLostError("reset")


def part(lost_at: dict[str, int] | None = None, by: HostfaultError = RESET) -> Part:
    """Three tests; each of some loses its guest so many times."""
    left = dict(lost_at or {})

    def run(testbed: Any, names: Sequence[str]) -> Iterator[PartOutcome]:
        for name in names:
            if left.get(name):
                left[name] -= 1
                raise by
            yield PartOutcome("pjdfstest", name, "passed", "")

    return Part("pjdfstest x", ("x/0", "x/1", "x/2"), run)


def run(part: Part, lab: Beds, minutes: float = 1.0) -> list[str]:
    kept: list[PartOutcome] = []
    budget = Deadline(60 * minutes, "all")
    try:
        run_part(cast("Any", lab), part, Path(), kept.append, budget)
    except TimeIsUpError:
        kept.append(PartOutcome("", "time is up", "", ""))
    return [each.name for each in kept]


def test_a_part_whose_guest_is_lost_goes_on_with_what_is_left() -> None:
    lab = Beds()
    assert run(part({"x/1": 2}), lab) == ["x/0", "x/1", "x/2"]
    assert lab.lent == 3


def test_a_part_that_hangs_is_tried_again_too() -> None:
    lab = Beds()
    assert run(part({"x/1": 1}, DeadlineError("x/1", 300.0, "nothing")), lab) == [
        "x/0",
        "x/1",
        "x/2",
    ]
    assert lab.lent == 2


def test_a_part_whose_guest_is_always_lost_is_trouble() -> None:
    with pytest.raises(ConnectionLostError):
        run(part({"x/1": 3}), Beds())


def test_a_bug_that_the_back_end_logged_is_trouble() -> None:
    with pytest.raises(HostfaultError, match="has a bug"):
        run(part(), Beds('{"event": "bug"}\n'))


def test_no_test_begins_once_the_time_is_up() -> None:
    assert run(part(), Beds(), minutes=0.0) == ["x/0", "time is up"]


def test_a_run_goes_on_where_another_one_ended(tmp_path: Path) -> None:
    done = [
        PartOutcome("pjdfstest", "x/1", "failed", "1 of 2"),
        PartOutcome("fsx", "x/0", "passed", ""),
    ]
    assert [each.tests for each in left_of([part()], done)] == [("x/0", "x/2")]
    done += [PartOutcome("pjdfstest", f"x/{n}", "passed", "") for n in (0, 2)]
    assert list(left_of([part()], done)) == []
    file = tmp_path / "outcomes"
    assert read_outcomes(file) == []
    file.write_text("".join(json.dumps(asdict(each)) + "\n" for each in done))
    assert read_outcomes(file) == done
    file.write_text("no JSON\n")
    with pytest.raises(UsageError):
        read_outcomes(file)


@pytest.mark.parametrize("words", [["--resume", "--fstests", "x"], ["--minutes", "2"]])
def test_words_that_lack_others_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
