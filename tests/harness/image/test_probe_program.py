"""The probe, run natively: its steps, and what it touches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostfault.image import guest
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import LaunchError

PAGE = 4096
BUS_ADRERR = 2  # si_code of a SIGBUS for an address without memory behind it (sigaction(2))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest.build_probe(Cache(tmp_path_factory.mktemp("probe")))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"\xaa" * PAGE + b"\xbb" * PAGE)
    return path


class Running:
    """A probe at work: its steps are read one by one."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.steps: dict[str, dict[str, object]] = {}

    def until(self, step: str) -> dict[str, object]:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            said = json.loads(line)
            self.steps[said["step"]] = said
            if said["step"] == step:
                return said
        raise AssertionError(f"the probe ended before {step}: {self.steps}")

    def go(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write("go\n")
        self.child.stdin.flush()


@contextmanager
def running(probe: Path, file: Path, *words: str, offset: int = PAGE + 7) -> Iterator[Running]:
    line = [probe, "--file", file, "--offset", str(offset), "--length", str(2 * PAGE), *words]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield Running(child)
        finally:
            child.kill()


def test_a_load_returns_the_byte_of_the_file(probe: Path, file: Path) -> None:
    with running(probe, file, "--access", "load") as task:
        task.until("armed")
        assert task.steps["first-touch"]["value"] == 0xBB
        with file.open("r+b") as stream:
            stream.seek(PAGE + 7)
            stream.write(b"\xcc")
        task.go()
        assert task.until("outcome") == {"step": "outcome", "kind": "value", "value": 0xCC}
        task.until("done")
        assert task.child.wait(10) == 0
    assert task.steps["started"]["pid"] == task.child.pid


def test_a_store_arrives_only_at_its_second_touch(probe: Path, file: Path) -> None:
    with running(probe, file, "--access", "store", "--value", "0x5a") as task:
        task.until("armed")
        assert task.steps["first-touch"]["value"] == 0xA5
        assert file.read_bytes()[PAGE + 7] == 0xA5
        task.go()
        assert task.until("outcome") == {"step": "outcome", "kind": "value", "value": 0x5A}
        task.until("done")
    expected = b"\xaa" * PAGE + b"\xbb" * 7 + b"\x5a" + b"\xbb" * (PAGE - 8)
    assert file.read_bytes() == expected, "no other byte is touched"


@pytest.mark.parametrize("access", ["load", "store"])
def test_a_page_that_the_file_lost_gives_a_bus_error_at_the_armed_instruction(
    probe: Path, file: Path, access: str
) -> None:
    with running(probe, file, "--access", access) as task:
        armed = task.until("armed")
        os.truncate(file, PAGE)
        task.go()
        outcome = task.until("outcome")
        task.until("done")
        assert task.child.wait(10) == 0
    mapping = int(str(task.steps["mapped"]["mapping"]), 16)
    assert int(str(armed["address"]), 16) == mapping + PAGE + 7
    assert outcome == {
        "step": "outcome",
        "kind": "signal",
        "signal": signal.SIGBUS,
        "code": BUS_ADRERR,
        "address": armed["address"],
        "rip": armed["rip"],
    }
    assert list(task.steps)[-3:] == ["touching", "outcome", "done"]


def test_the_touching_instruction_is_one_move_of_one_byte(probe: Path, file: Path) -> None:
    with running(probe, file, "--access", "load") as task:
        rip = int(str(task.until("armed")["rip"]), 16)
        with Path(f"/proc/{task.child.pid}/mem").open("rb") as memory:
            memory.seek(rip)
            assert memory.read(4) == bytes.fromhex("0fb607c3"), "movzbl (%rdi), %eax; ret"


def test_other_pages_of_the_mapping_are_not_touched(probe: Path, tmp_path: Path) -> None:
    file = tmp_path / "short"
    file.write_bytes(b"\xaa" * PAGE)  # half of the mapping: touching the rest is a bus error
    with running(probe, file, "--access", "load", offset=PAGE - 1) as task:
        task.until("armed")
        task.go()
        assert task.until("outcome")["value"] == 0xAA


def test_a_first_touch_that_fails_is_no_outcome(probe: Path, file: Path) -> None:
    os.truncate(file, 0)
    with running(probe, file, "--access", "load") as task:
        assert task.until("failed") == {
            "step": "failed",
            "call": "first-touch",
            "signal": signal.SIGBUS,
        }
        assert task.child.wait(10) == 2


def test_a_file_that_cannot_be_opened_is_reported_with_its_errno(
    probe: Path, tmp_path: Path
) -> None:
    with running(probe, tmp_path / "nothing", "--access", "load") as task:
        assert task.until("failed") == {"step": "failed", "call": "open", "errno": 2}
        assert task.child.wait(10) == 2


def test_without_the_word_nothing_is_touched(probe: Path, file: Path) -> None:
    with running(probe, file, "--access", "load") as task:
        task.until("armed")
        assert task.child.stdin is not None
        task.child.stdin.close()
        assert task.until("failed")["call"] == "read"
        assert "touching" not in task.steps
        assert task.child.wait(10) == 2


def test_options_may_come_as_the_first_line_of_its_input(probe: Path, file: Path) -> None:
    with subprocess.Popen(
        [probe, "--wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        task = Running(child)
        task.until("waiting")
        assert child.stdin is not None
        child.stdin.write(f"--file {file} --offset {PAGE} --length {2 * PAGE} --access load\n")
        child.stdin.flush()
        task.until("armed")
        task.go()
        assert task.until("outcome")["value"] == 0xBB
        assert child.wait(10) == 0


@pytest.mark.parametrize("line", ["", "\n", "--access load\n", "--file f " * 500 + "\n"])
def test_a_line_that_is_no_request_is_told(probe: Path, line: str) -> None:
    done = subprocess.run(
        [probe, "--wait"], input=line, capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert "usage: probe" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--wait more",
        "--file f --offset 0 --length 1",
        "--file f --offset 0 --length 1 --access peek",
        "--file f --offset 1 --length 1 --access load",
        "--file f --offset -1 --length 1 --access load",
        "--file f --offset 0 --length 1x --access load",
        "--file f --offset 0 --length 1 --access store --value 256",
        "--file f --offset 0 --length 1 --access load more",
    ],
)
def test_a_wrong_command_line_is_told_and_nothing_is_done(probe: Path, words: str) -> None:
    done = subprocess.run([probe, *words.split()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert "usage: probe" in done.stderr


def test_a_probe_that_does_not_compile_shows_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probe.c").write_text("int main(void) { return nonsense; }")
    for name in ("probe.h", "task.c"):
        (tmp_path / name).touch()
    monkeypatch.setattr(guest, "PROBE_SOURCES", tmp_path)
    with pytest.raises(LaunchError, match="nonsense"):
        guest.build_probe(Cache(tmp_path / "cache"))
