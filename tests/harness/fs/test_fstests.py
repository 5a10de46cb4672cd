"""fstests: which tests are run, what goes into the guest, and what check's words mean."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.fs import __main__ as main
from hostfault.fs import fstests
from hostfault.fs.fstests import read_check
from hostfault.fs.suites import PartOutcome
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, UsageError
from hostfault.remote.shell import Answer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree that looks like fstests'."""
    folder = tmp_path / "tests" / "generic"
    folder.mkdir(parents=True)
    (folder / "001").write_text("_begin_fstest rw dir auto quick\n")
    (folder / "001.out").write_text("_begin_fstest quick\n")
    (folder / "002").write_text("_begin_fstest auto quickly\n")
    (folder / "003").write_text("_begin_fstest auto quick\n_require_scratch_nocheck\n")
    return tmp_path


def test_the_group_is_what_the_tests_say_of_themselves(source: Path) -> None:
    assert fstests.tests(source) == ["generic/001", "generic/003"]


def test_sources_without_such_a_test_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no test of the group quick"):
        fstests.tests(tmp_path)


def test_a_test_that_asks_for_a_second_file_system_is_told_from_others(source: Path) -> None:
    assert [fstests.needs_second(source, name) for name in fstests.tests(source)] == [False, True]


def test_the_group_is_one_part_of_which_some_can_be_chosen(source: Path) -> None:
    assert [part.tests for part in main.fstests_parts(source, ["generic/003"])] == [
        ("generic/003",)
    ]
    assert not list(main.fstests_parts(source, ["fsx"]))


HEAD = "FSTYP         -- virtiofs\nPLATFORM      -- Linux/x86_64 guest 7.3.4\n\n"


@pytest.mark.parametrize(
    ("text", "verdict", "detail"),
    [
        ("generic/001        16s\nRan: generic/001\nPassed all 1 tests\n\n", "passed", ""),
        (
            "generic/001       [not run] xfs_io fzero  failed (old kernel/wrong fs?)\n"
            "Ran: generic/001\nNot run: generic/001\nPassed all 1 tests\n\n",
            "skipped",
            "xfs_io fzero  failed (old kernel/wrong fs?)",
        ),
        (
            "generic/001       - output mismatch (see /fstests/results//generic/001.out.bad)\n"
            "Ran: generic/001\nFailures: generic/001\nFailed 1 of 1 tests\n\n2c2\n< a\n---\n> b\n",
            "failed",
            "> b",
        ),
        ("generic/001        NO-END\n", "trouble", "no end within 120 s"),
        ("mount: /mnt: hostfault already mounted\n", "trouble", "already mounted"),
        ("", "trouble", "no verdict"),
    ],
)
def test_a_test_is_read_by_the_words_of_check(text: str, verdict: str, detail: str) -> None:
    outcome = read_check("generic/001", HEAD + text if text else "")
    assert (outcome.verdict, outcome.name) == (verdict, "generic/001")
    assert detail in outcome.detail


def test_what_is_only_for_compiling_stays_out_of_the_guest(tmp_path: Path) -> None:
    kept = {"./bin/bash", "usr/bin/perl", "fstests/src/lstat64", "fstests/tests/generic/001"}
    left_out = {"usr/include/stdio.h", "./usr/lib/gcc", "fstests/src/lstat64.o", "./src"}
    packed = {name for name in kept | left_out if fstests.packed(tarfile.TarInfo(name))}
    assert packed == kept


class Bed:
    """One whose guest hangs up at a test, and answers with its kernel's last words then."""

    def __init__(self, lost_at: str) -> None:
        self.guest = self.agent = self.recorder = self
        self._lost_at = lost_at

    def ended(self, child: str) -> int | None:
        return None

    def wait_changed(self, seconds: float) -> None: ...

    def run(self, command: str, deadline: Deadline) -> Answer:
        if self._lost_at in command:
            raise ConnectionLostError("the guest hung up")
        if "dmesg" in command:
            return Answer(0, "Out of memory: Killed process 7 (dropbear)")
        return Answer(0, "Passed all 1 tests\n")


def _collect(found: Iterator[PartOutcome], into: list[PartOutcome]) -> None:
    for outcome in found:
        into.append(outcome)  # one by one: those before an error count


def test_a_test_that_loses_its_guest_is_trouble_and_is_not_run_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_send_fstests", lambda *_: None)
    monkeypatch.setattr(main, "QEMU_ENDING", 0.01)
    outcomes: list[PartOutcome] = []
    (part,) = main.fstests_parts(source, [])
    with pytest.raises(ConnectionLostError):
        _collect(part.run(cast("Any", Bed("generic/001")), part.tests), outcomes)
    assert [(each.name, each.verdict) for each in outcomes] == [
        ("generic/003", "skipped"),
        ("generic/001", "trouble"),
    ]
    assert main.exit_code(outcomes) == 2
    assert "Out of memory" in outcomes[-1].detail


def test_each_user_that_tests_become_can_be_become(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group", "shadow"):
        (tmp_path / "etc" / name).write_text("root:*:0:\n")
    files = dict(fstests.added_files(tmp_path))
    for name in ("passwd", "group", "shadow"):
        users = [line.partition(":")[0] for line in files[f"etc/{name}"].splitlines()]
        assert users == ["root", "fsgqa", "fsgqa2", "123456-fsgqa"]
