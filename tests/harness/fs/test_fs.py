"""The suites of others: how they are built, run, and understood."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from hostfault.fs import suites
from hostfault.fs.__main__ import main, pjdfstest_parts
from hostfault.fs.send import send_program
from hostfault.fs.suites import Outcome, read_fsx, read_tap
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, LaunchError, UsageError

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
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        archive.extract("pjdfstest/pjdfstest", tmp_path / "out", filter="data")
    assert "pjdfstest/tests/chmod/01.t" in names
    program = tmp_path / "out" / "pjdfstest" / "pjdfstest"
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
    assert read_fsx("direct", 0, "All 10 operations completed") == Outcome(
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
        Outcome("pjdfstest", "a", "passed", "9"),
        Outcome("pjdfstest", "b", "failed", "8 of 9"),
        Outcome("fsx", "c", "skipped", ""),
    ]
    lines = suites.table(outcomes).splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["pjdfstest", "1", "1", "0"],
        ["fsx", "0", "0", "1"],
    ]
    assert lines[3] == "pjdfstest b: 8 of 9"


class Channel:
    """The stream of a guest that runs what it is told here; its input can't be closed alone."""

    def __init__(self, command: str) -> None:
        self._child = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def settimeout(self, timeout: float | None) -> None:
        assert timeout is None or timeout > 0

    def sendall(self, data: bytes) -> None:
        assert self._child.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._child.stdin.write(view) :]

    def recv(self, size: int) -> bytes:
        assert self._child.stdout is not None
        return self._child.stdout.read(size)

    def close(self) -> None:
        self._child.communicate(timeout=10)


class Guest:
    """A shell of this machine."""

    name = "guest"

    def open(self, command: str, deadline: Deadline) -> Channel:
        return Channel(command)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_program_arrives_whole_and_can_be_run(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "a program"
    data = b"#!/bin/sh\nexit 3\n" + bytes(range(256)) * 1000
    send_program(guest, data, str(path), Deadline(10.0, "it to be sent"))  # type: ignore[arg-type]
    assert path.read_bytes() == data
    assert subprocess.run([path], check=False).returncode == 3


def test_a_guest_without_room_says_so(guest: Guest) -> None:
    with pytest.raises(HostfaultError, match="No space left"):
        send_program(guest, bytes(100_000), "/dev/full", Deadline(10.0, "it"))  # type: ignore[arg-type]


def test_a_guest_that_is_gone_is_lost(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(channel: Channel, data: bytes) -> None:
        raise OSError("socket is closed")

    monkeypatch.setattr(Channel, "sendall", gone)
    monkeypatch.setattr(Channel, "close", lambda channel: channel._child.kill())
    with pytest.raises(ConnectionLostError, match="socket is closed"):
        send_program(guest, b"x", "/dev/null", Deadline(10.0, "it"))  # type: ignore[arg-type]
