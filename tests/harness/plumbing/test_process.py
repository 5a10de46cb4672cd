"""Child processes start, are logged, end and are reaped, however their block is left."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hostfault
from hostfault.plumbing import process
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import LaunchError
from hostfault.plumbing.process import call, end, run, shell_line, spawn, tail

STUBBORN = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def wait_for_line(log: Path, line: str) -> None:
    deadline = Deadline(10.0, f"{line!r} in {log}")
    poll(deadline, lambda: line in tail(log).splitlines() or None, interval=0.01)


def group_is_gone(group: int) -> bool:
    """Whether all of a group, or a process, has ended; who inherits orphans may reap them late."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = stat.read_text().rpartition(")")
            state, _, its_group = after.split()[:3]
        except OSError:
            continue  # ended meanwhile
        if str(group) in (its_group, before.split()[0]) and state != "Z":
            return False
    return True


def wait_until_gone(group: int) -> None:
    deadline = Deadline(10.0, f"process group {group} to end")
    poll(deadline, lambda: group_is_gone(group) or None, interval=0.01)


# --- run ---


def test_run_returns_what_the_program_wrote() -> None:
    assert run(["echo", "hello"], what="echo") == "hello\n"


def test_run_hands_on_text_environment_and_directory(tmp_path: Path) -> None:
    out = run(
        ["sh", "-c", 'cat; echo "$WORD"; pwd'],
        what="sh",
        input_text="in\n",
        env={"WORD": "w", "PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert out.splitlines() == ["in", "w", str(tmp_path.resolve())]


def test_a_program_that_fails_is_told_with_command_code_and_last_words() -> None:
    with pytest.raises(LaunchError) as caught:
        run(["sh", "-c", "echo out; echo oh no >&2; exit 3"], what="the shell")
    error = caught.value
    assert (error.code, error.what) == (3, "the shell")
    assert "ended with code 3" in str(error)
    assert "sh -c 'echo out; echo oh no >&2; exit 3'" in str(error)
    assert "oh no" in str(error)


def test_a_program_that_is_missing_is_told() -> None:
    with pytest.raises(LaunchError, match="did not start") as caught:
        run(["/nonexistent/program"], what="it")
    assert caught.value.code is None


def test_a_program_that_takes_too_long_is_ended_and_told() -> None:
    started = time.monotonic()
    with pytest.raises(LaunchError, match="still running after"):
        run(["sleep", "60"], what="sleep", timeout=0.2)
    assert time.monotonic() - started < 30


def wait_for_number(path: Path) -> int:
    """The number that a program writes to a file, on a line."""

    def look() -> int | None:
        text = path.read_text() if path.exists() else ""
        return int(text) if text.endswith("\n") else None

    return poll(Deadline(10.0, f"a number in {path}"), look, interval=0.01)


# Starts a child, says which group it is, and tidies up when it is asked to end. The trap comes
# second: until it is another program, a child has it too, and a signal would be lost.
TIDY = "sleep 60 & trap 'echo done >tidied; exit' TERM; echo $$ >group; wait"


def test_children_of_a_program_that_takes_too_long_are_ended_too(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="still running after"):
        run(["sh", "-c", TIDY], what="sh", timeout=1.0, cwd=tmp_path)
    wait_until_gone(wait_for_number(tmp_path / "group"))
    assert (tmp_path / "tidied").exists()


def test_children_left_by_a_program_that_was_run_are_ended(tmp_path: Path) -> None:
    left = "sleep 60 >/dev/null 2>&1 & echo $! >child"
    run(["sh", "-c", left], what="sh", cwd=tmp_path)
    wait_until_gone(wait_for_number(tmp_path / "child"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_running_program_and_its_children_end_with_the_harness(
    tmp_path: Path, number: signal.Signals
) -> None:
    # It reads first: input comes when all is set up, and a moment before that nobody watches.
    program = f"read -r word; {TIDY}"
    # A job that a shell puts into the background ignores SIGINT, and hands that on.
    script = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from hostfault.plumbing.process import run\n"
        f"run(['sh', '-c', {program!r}], what='sh', input_text='go\\n')\n"
    )
    root = str(Path(hostfault.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        stderr=subprocess.DEVNULL,
    ) as harness:
        group = wait_for_number(tmp_path / "group")
        harness.send_signal(number)
    wait_until_gone(group)
    assert (tmp_path / "tidied").exists()


def test_what_ignores_the_end_of_the_harness_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RUN_GRACE", 0.2)
    with pytest.raises(LaunchError, match="still running after"):
        run(["sh", "-c", f"echo $$ >group; {STUBBORN}"], what="sh", timeout=1.0, cwd=tmp_path)
    wait_until_gone(wait_for_number(tmp_path / "group"))


def test_a_logged_command_can_be_pasted_into_a_shell() -> None:
    argv = ["printf", "%s", "it's a $HOME; ok"]
    line = shell_line(argv)
    assert shlex.split(line) == argv
    assert run(["sh", "-c", line], what="sh") == "it's a $HOME; ok"


# --- spawn ---


def test_a_spawned_program_logs_its_command_and_both_its_outputs(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    with spawn(["sh", "-c", "echo out; echo err >&2"], log=log) as child:
        assert child.wait(10) == 0
    assert log.read_text() == "$ sh -c 'echo out; echo err >&2'\nout\nerr\n"


def test_a_spawned_program_ends_with_its_block(tmp_path: Path) -> None:
    with spawn(["sleep", "60"], log=tmp_path / "log") as child:
        assert child.poll() is None
    assert child.returncode == -signal.SIGTERM


def test_a_spawned_program_ends_when_its_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), spawn(["sleep", "60"], log=tmp_path / "log") as child:
        raise KeyboardInterrupt
    assert child.returncode is not None


def test_a_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn(["sh", "-c", STUBBORN], log=log, grace=0.2) as child:
        wait_for_line(log, "ready")
    assert child.returncode == -signal.SIGKILL


def test_children_of_a_spawned_program_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn(["sh", "-c", "sleep 60 & echo ready; wait"], log=log) as child:
        wait_for_line(log, "ready")
    wait_until_gone(child.pid)


def test_children_left_by_a_program_that_has_ended_are_killed_too(tmp_path: Path) -> None:
    with spawn(["sh", "-c", "sleep 60 & exit 4"], log=tmp_path / "log") as child:
        assert child.wait(10) == 4
    assert child.returncode == 4
    wait_until_gone(child.pid)


def test_a_spawned_program_dies_with_a_harness_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = (
        "import sys\nfrom pathlib import Path\nfrom hostfault.plumbing.process import spawn\n"
        f"with spawn(['sh', '-c', 'echo ready; exec sleep 60'], log=Path({str(log)!r})) as child:\n"
        "    print(child.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with harness:
        assert harness.stdout is not None
        child = int(harness.stdout.readline())
        wait_for_line(log, "ready")
        harness.kill()
    wait_until_gone(child)


def test_a_spawned_program_gets_the_descriptors_that_it_is_passed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with spawn(
            ["sh", "-c", f"echo through >/dev/fd/{writer}"], log=tmp_path / "log", pass_fds=[writer]
        ) as child:
            assert child.wait(10) == 0
        assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_ending_a_program_that_has_ended_returns_its_code(tmp_path: Path) -> None:
    with spawn(["sh", "-c", "exit 5"], log=tmp_path / "log") as child:
        child.wait(10)
        assert end(child) == 5


def test_the_tail_of_a_log_is_its_last_bytes_or_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 50 + b"\xff end")
    assert tail(log, 5) == "\ufffd end"
    assert tail(tmp_path / "none") == ""


def test_a_program_that_people_watch_says_its_code_and_speaks_to_them(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(["sh", "-c", "echo hello; exit 3"], what="a program", timeout=10.0) == 3
    assert capfd.readouterr().out == "hello\n"
    with pytest.raises(LaunchError, match="a missing one did not start"):
        call(["/nonexistent/program"], what="a missing one", timeout=10.0)
    with pytest.raises(LaunchError, match="still running after 0 s"):
        call(["sleep", "60"], what="a slow one", timeout=0.1)
