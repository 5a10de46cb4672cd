"""The accesses that tests can name are those that the probe can do."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest

from hostfault.access import ACCESSES, Access
from hostfault.agent.wire import Echo
from hostfault.image.guest import build_probe
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import UsageError


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    return build_probe(cache)


PLACE, FIRST = 4096 + 4, 4  # bytes into the file; a futex is aligned to 4 of them
WITHOUT_RIP = {"ifetch"}  # its instruction is in the page


def outcome_of(
    probe: Path, file: Path, access: Access, first: int = FIRST, length: int = 8192
) -> dict[str, object]:
    """What the probe reports when nothing happens between its two touches."""
    if access.name == "coredump" and Path("/proc/sys/kernel/core_pattern").read_text() != "core\n":
        pytest.skip("kernel.core_pattern has this machine's core files elsewhere")
    if access.nested and (os.geteuid() or not Path("/dev/kvm").exists()):
        pytest.skip("it takes root to know a page's frame, and a /dev/kvm")
    places = ["--offset", str(PLACE), "--first", str(first)]
    words = ["--file", file, "--length", str(length), *places]
    line = [probe, *words, "--access", access.name, "--value", "90"]
    disk = file.with_name("disk")  # in place of a guest's: page N is full of the byte N
    disk.write_bytes(b"".join(bytes([byte]) * 4096 for byte in range(256)))
    with closing(Echo("127.0.0.1", 0)) as echo:
        environment = {"HOSTFAULT_DISK": str(disk), "HOSTFAULT_ECHO": str(echo.port)}
        done = subprocess.run(
            line, input="go\n", capture_output=True, text=True, check=True, env=environment
        )
    said = done.stdout
    steps = {step["step"]: step for step in map(json.loads, said.splitlines())}
    without = access.by_kernel or access.name in WITHOUT_RIP
    assert (int(steps["armed"]["rip"], 16) == 0) == without
    return dict(steps["outcome"])


def test_the_probe_knows_every_access_and_no_other(probe: Path) -> None:
    usage = subprocess.run([probe], capture_output=True, text=True, check=False).stderr
    assert set(usage.rpartition("accesses:")[2].split()) == {access.name for access in ACCESSES}


@pytest.mark.parametrize("access", list(ACCESSES), ids=lambda access: access.name)
def test_an_access_touches_the_byte_that_it_is_told_to(
    probe: Path, tmp_path: Path, access: Access
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 32)
    first = PLACE if access.name == "ifetch" else FIRST  # which leaves its code at the first
    outcome = outcome_of(probe, file, access, first)
    left = file.read_bytes()
    assert outcome == {"step": "outcome", "kind": "value", "value": 90 if access.writes else 4}
    assert left[PLACE] == (90 if access.writes else 4)
    if first != PLACE:
        assert left[FIRST] == (0xFF - 90 if access.writes else 4), "the first touch is elsewhere"


@pytest.mark.parametrize(
    "access", [access for access in ACCESSES if "end" in access.outcomes], ids=lambda a: a.name
)
def test_a_file_that_ends_before_the_byte_is_told_by_a_system_call(
    probe: Path, tmp_path: Path, access: Access
) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    told = "hole" if "hole" in access.outcomes else "end"  # a core has what is there
    assert outcome_of(probe, file, access)["kind"] == told


def test_a_core_takes_no_other_page_of_the_mapping(probe: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:  # there, what is touched takes room
        file = Path(folder) / "file"
        with file.open("wb") as stream:
            os.ftruncate(stream.fileno(), 16 * 4096)
            os.pwrite(stream.fileno(), b"\4", PLACE)
        outcome = outcome_of(probe, file, ACCESSES["coredump"], PLACE, length=16 * 4096)
        assert outcome == {"step": "outcome", "kind": "value", "value": 4}
        assert file.stat().st_blocks * 512 == 4096


def test_a_name_that_is_unknown_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'fetch'.* load, store, read, write"):
        ACCESSES["fetch"]


@contextmanager
def armed(probe: Path, file: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A probe that has touched the page once and waits for the word."""
    file.write_bytes(bytes(8192))
    line = [probe, "--file", file, "--length", "8192", "--offset", "4", "--access", "load", *words]
    with subprocess.Popen(line, stdin=PIPE, stdout=PIPE, text=True) as child:
        assert child.stdout is not None
        said = [json.loads(child.stdout.readline())["step"] for _ in range(4)]
        assert said == ["started", "mapped", "first-touch", "armed"]
        yield child
        out, _ = child.communicate("go\n", timeout=30)
        assert "done" in out


def cpu_of(pid: int) -> int:
    """Where a task has run last (proc(5), stat)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[36])


needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has no other")


@needs_two
def test_a_task_that_is_pinned_stays_on_the_last_cpu(probe: Path, tmp_path: Path) -> None:
    with armed(probe, tmp_path / "file", "--task", "pinned") as child:
        last = max(os.sched_getaffinity(0))
        assert os.sched_getaffinity(child.pid) == {last}
        assert cpu_of(child.pid) == last


@needs_two
def test_a_task_that_migrates_is_moved_until_it_ends_and_nothing_is_left(
    probe: Path, tmp_path: Path
) -> None:
    with armed(probe, tmp_path / "file", "--task", "migrating") as child:
        (mover,) = children_of(child.pid)
        seen: set[frozenset[int]] = set()

        def moved() -> bool | None:
            seen.add(frozenset(os.sched_getaffinity(child.pid)))
            return len(seen) > 1 or None

        poll(Deadline(10.0, "the task to be moved"), moved, interval=0.001)
        assert all(len(where) == 1 for where in seen)
    gone = Deadline(10.0, "whoever moved the task to end")
    poll(gone, lambda: not Path(f"/proc/{mover}/cmdline").exists() or None, interval=0.01)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_task_cannot_be_placed_by_a_word_that_means_nothing(probe: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8192))
    line = [probe, "--file", file, "--length", "8192", "--offset", "4", "--access", "load"]
    done = subprocess.run([*line, "--task", "lost"], capture_output=True, text=True, check=False)
    assert done.returncode == os.EX_USAGE
    assert "--task pinned|migrating" in done.stderr
