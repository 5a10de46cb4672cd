"""How the agent's children begin and end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Collection

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)

# $1: a process group. Ends it when the input does, which is when whoever holds the other end has.
_GUARD = 'read -r line; kill -s KILL -- "-$1"'


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child by TERM, then KILL, with all of its group."""
    for number, patience in ((signal.SIGTERM, 2), (signal.SIGKILL, 10)):
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # what it started and left in its group
    child.wait(10)


def in_child() -> None:
    """End with us, and never have more rights than now, whatever is executed (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def guard(group: int) -> subprocess.Popen[bytes]:
    """A process that kills a process group once we are gone; end it when that group has ended.

    For programs that change their user: that takes their parent-death signal away (prctl(2)).
    """
    return subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", str(group)],
        env={"PATH": os.defpath},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guards: Collection[subprocess.Popen[bytes]]) -> None:
    """End guards before they act."""
    for each in guards:
        each.kill()
        each.wait(10)
        if each.stdin is not None:
            each.stdin.close()
