"""Child processes: one context manager starts, logs, ends and reaps every one of them."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from hostfault.plumbing.errors import LaunchError

RUN_GRACE = 30.0  # seconds; mmdebstrap removes a tree of hundreds of megabytes after SIGTERM

# Reads a process group. $1: tenths of a second between TERM and KILL.
_GUARD = """
read -r group || exit
read -r word && exit
kill -s TERM -- "-$group"
left=$1
while [ "$left" -gt 0 ] && kill -s 0 -- "-$group"; do
    sleep 0.1
    left=$((left - 1))
done
kill -s KILL -- "-$group"
"""


def shell_line(argv: Sequence[str]) -> str:
    """The command as a line that can be pasted into a shell."""
    return shlex.join(argv)


def tail(path: Path, limit: int = 4000) -> str:
    """The last ``limit`` bytes of a log as text; empty if there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def run(
    argv: Sequence[str],
    *,
    what: str,
    timeout: float = 600.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input_text: str | None = None,
) -> str:
    """Run a program to its end and return its standard output.

    ``timeout`` is in seconds. It gets a process group of its own, of which nothing is left when
    this returns or raises, nor soon after this process was killed. Raises :class:`LaunchError`
    with the end of its output if it is missing, fails or takes longer.
    """

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(argv),
            env=dict(env) if env is not None else None,
            cwd=cwd,
            stdin=subprocess.DEVNULL if input_text is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    try:
        with _guarded(start, RUN_GRACE) as child:
            out, err = child.communicate(input_text, timeout)
    except OSError as error:
        raise LaunchError(what, argv, None, str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(what, argv, None, f"still running after {timeout:.0f} s") from error
    if child.returncode != 0:
        raise LaunchError(what, argv, child.returncode, (out + err)[-4000:])
    return out


def call(argv: Sequence[str], *, what: str, timeout: float, cwd: Path | None = None) -> int:
    """Run a program to its end, whose output people see as it comes; returns its exit code.

    ``timeout`` is in seconds. Its process group ends as that of :func:`run`. Raises
    :class:`LaunchError` if it is missing or takes longer.
    """

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(argv), cwd=cwd, stdin=subprocess.DEVNULL, text=True, start_new_session=True
        )

    try:
        with _guarded(start, RUN_GRACE) as child:
            return child.wait(timeout)
    except OSError as error:
        raise LaunchError(what, argv, None, str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(what, argv, None, f"still running after {timeout:.0f} s") from error


@contextmanager
def _guarded(
    start: Callable[[], subprocess.Popen[str]], grace: float
) -> Iterator[subprocess.Popen[str]]:
    """A child whose process group ends with the block, or when this process is killed within it.

    For the latter a shell waits for a word or, when we are gone, the end of its input.
    PR_SET_PDEATHSIG would reach the child alone, and what it started would live on. (Between
    the start of the child and the first word to the shell, nobody watches.)
    """
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", str(round(grace * 10))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert guard.stdin is not None
    with guard, start() as child:
        try:
            guard.stdin.write(f"{child.pid}\n".encode())
            guard.stdin.flush()
            yield child
        finally:
            end(child, grace)
            guard.communicate(b"over\n")


@contextmanager
def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    grace: float = 3.0,
    death_signal: str = "KILL",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the ``with`` block lasts.

    It gets a process group of its own, gets ``death_signal`` when this process dies
    (``setpriv --pdeathsig``: call this from a thread that lives as long as the child should),
    writes to ``log`` (standard error
    always, standard output unless given), and is ended by TERM, then after ``grace`` seconds by
    KILL, and reaped. Raises :class:`LaunchError` if it cannot be started.
    """
    line = ["setpriv", "--pdeathsig", death_signal, "--", *argv]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        sink.write(f"$ {shell_line(argv)}\n".encode())
        sink.flush()
        try:
            child = subprocess.Popen(
                line,
                env=dict(env) if env is not None else None,
                stdin=stdin,
                stdout=sink if stdout is None else stdout,
                stderr=sink,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchError(argv[0], argv, None, str(error)) from error
    try:
        yield child
    finally:
        end(child, grace)


def end(child: subprocess.Popen[Any], grace: float = 3.0) -> int:
    """End a child's process group by TERM, then KILL; reap it and return its code."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        if child.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(patience)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)  # whatever it started and left in its group
    return child.wait(10.0)
