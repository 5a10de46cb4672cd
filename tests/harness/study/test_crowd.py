"""The crowd of the study, run natively, and the counts of its tracer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostfault.agent.tracing import Tracer
from hostfault.image import guest
from hostfault.plumbing.cache import Cache
from hostfault.remote.channel import steps


def test_a_histogram_keeps_every_vcpu_apart(tmp_path: Path) -> None:
    event = tmp_path / "instances" / "study" / "events" / "kvm" / "kvm_try_async_get_page"
    event.mkdir(parents=True)
    (event / "format").write_text("field:u64 gfn;\n")
    (event / "hist").write_text(
        "{ common_pid:        181, gfn:    1015811 } hitcount:          7\n"
        "{ common_pid:        182, gfn:    1015811 } hitcount:          2\n"
    )
    tracer = Tracer("study", tmp_path)
    assert tracer.start() == ["kvm_try_async_get_page"]
    assert tracer.entries("kvm_try_async_get_page") == [
        ({"common_pid": 181, "gfn": 0xF8003}, 7),
        ({"common_pid": 182, "gfn": 0xF8003}, 2),
    ]
    assert tracer.entries("kvm_async_pf_ready") == []


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guest.build_program(Cache(tmp_path_factory.mktemp("crowd")), guest.CROWD_SOURCE)


def talk(
    program: Path, tmp_path: Path, words: str, lines: str
) -> tuple[int, list[dict[str, object]]]:
    file = tmp_path / "file"
    file.write_bytes(bytes(16 * 4096))
    done = subprocess.run(
        [program, "--file", file, "--length", str(16 * 4096), *words.split()],
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, steps(done.stdout)


def test_touchers_are_spread_among_the_busy_ones(program: Path, tmp_path: Path) -> None:
    _, steps = talk(program, tmp_path, "--tasks 8 --policy fair", "pages 3 9\n")
    tasks = [step for step in steps if step["step"] == "task"]
    assert [task.get("page") for task in tasks] == [None, None, None, 3, None, None, None, 9]


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--tasks 2 --policy fair", "pages 16\n"),  # beyond the end
        ("--tasks 1 --policy fair", "pages 1 2\n"),  # more than tasks
        ("--tasks 1 --policy fair", "go\n"),
        ("--tasks 1 --policy fair", ""),
    ],
)
def test_pages_that_cannot_be_touched_are_refused(
    program: Path, tmp_path: Path, words: str, lines: str
) -> None:
    code, steps = talk(program, tmp_path, words, lines)
    assert (code, steps[-1]["step"], steps[-1]["call"]) == (2, "failed", "pages")


@pytest.mark.parametrize(
    "words",
    ["--tasks 0 --policy fair", "--tasks 257 --policy fair", "--tasks 1 --policy x", "--tasks 1"],
)
def test_a_wrong_command_line_is_told(program: Path, tmp_path: Path, words: str) -> None:
    assert talk(program, tmp_path, words, "") == (64, [])
