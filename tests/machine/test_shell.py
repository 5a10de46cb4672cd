"""ci/shell, for real: a command or a terminal in a fork of the snapshot, and nothing left of it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

from hostfault.plumbing.deadline import Deadline

SHELL = [sys.executable, "-P", "-m", "hostfault.shell"]
SOON = 200.0  # seconds: where there is no snapshot yet, one is made


def left() -> set[Path]:
    return {path for path in Path("/tmp").glob("hostfault-*") if path.stat().st_uid == os.geteuid()}


def test_a_command_in_the_guest_sees_the_dax_mount_and_its_code_is_ours() -> None:
    before = left()
    line = [*SHELL, "--guest", "--run", "cat /proc/mounts; exit 7"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SOON, check=False)
    assert done.returncode == 7, done.stderr
    assert "virtiofs rw,relatime,dax=always" in done.stdout
    assert left() <= before, "a directory is left"


def test_a_shell_that_is_told_to_end_leaves_nothing() -> None:
    before = left()
    line = [*SHELL, "--guest", "--run", "echo it runs; sleep 600"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), "it runs", Deadline(SOON, "the command to run"))
        child.terminate()
        assert child.wait(20.0) == 130
    assert left() <= before, "a directory is left"


def test_a_command_in_the_host_has_the_tracepoints_at_hand() -> None:
    line = [*SHELL, "--host", "--run", "ls /sys/kernel/tracing/events/kvm; uname -r"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=SOON, check=False)
    assert done.returncode == 0, done.stderr
    assert "kvm_page_fault" in done.stdout


def test_without_a_terminal_there_is_no_shell_but_an_error() -> None:
    done = subprocess.run(
        SHELL, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False
    )
    assert done.returncode == 255
    assert "no terminal: use --run COMMAND" in done.stderr


def test_what_is_typed_reaches_the_shell_and_ctrl_d_ends_it() -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(SHELL, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        read_until(ours, "Ctrl-D ends it", Deadline(SOON, "the greeting"))
        read_until(ours, "~ # ", Deadline(20.0, "the prompt"))
        os.write(ours, b"echo the answer is $((6 * 7))\n")
        # A Ctrl-D that comes before the next prompt is lost: the shell changes the terminal there.
        read_until(ours, "the answer is 42.*~ # ", Deadline(20.0, "an answer and a prompt"))
        os.write(ours, b"\x04")
        assert child.wait(20.0) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def read_until(terminal: int, pattern: str, deadline: Deadline) -> None:
    said = b""
    while not re.search(pattern, said.decode(errors="replace"), re.DOTALL):
        deadline.saw(said)
        deadline.check()
        if select.select([terminal], [], [], min(1.0, deadline.left()))[0]:
            said += os.read(terminal, 4096)
