"""Everything that hostfault raises, as one tree.

::

    HostfaultError              harness trouble; never a verdict (pytest: error, bisect: 125)
    |-- UsageError              the person asked for what does not exist: list what does
    |-- SetupError              a kernel, an image or a package could not be had: mend the machine
    |   |-- CacheMissError      ... because it is not in the cache and there is no network
    |   `-- NoBuildRootError    ... because bubblewrap may not make a root to build in
    |-- UntestableError         a commit does not build: another one may
    |-- BrokenHarnessError      ... and so would every other one: a bisection must stop
    |-- MissingCapabilityError  this host cannot run that test: skip, or fail under --require
    |-- LaunchError             a program did not start or ended at once: read its last words
    |-- DeadlineError           a wait ended without what it waited for
    |-- GuestLostError          an emulated CPU has lost its guest: the same case may be tried again
    |-- ConnectionLostError     a peer (SSH, QMP, agent) went away while it was needed
    `-- ProtocolError           a peer said something that its protocol does not allow

A program that ends, a guest that panics or a host that hangs *while it is being observed* is
not an error: it is recorded in the observation and becomes a verdict. The programs that run inside
the host (agent, daxfs) have exceptions of their own, which never leave them.
"""

import shlex
from collections.abc import Sequence


class HostfaultError(Exception):
    """Harness trouble: nothing is known about the kernel under test."""


class UsageError(HostfaultError):
    """The person asked for something that does not exist; the message lists what does."""


class SetupError(HostfaultError):
    """A kernel, an image or a package could not be had; the message says what to do."""


class CacheMissError(SetupError):
    """Something is not in the cache and could not be fetched."""


class NoBuildRootError(SetupError):
    """Bubblewrap may not make a root to build in on this machine."""


class UntestableError(HostfaultError):
    """The commit cannot be tested: it does not build."""


class BrokenHarnessError(HostfaultError):
    """The trouble is not this kernel's: every other one would meet it, too."""


class MissingCapabilityError(HostfaultError):
    """The host cannot run the test: a skip, or an error under ``--require``."""

    def __init__(self, capability: str, reason: str) -> None:
        super().__init__(f"{capability}: {reason}")
        self.capability = capability
        self.reason = reason


class LaunchError(HostfaultError):
    """A program did not start, or ended before it was of use.

    Carries what a person needs to try it by hand: the command, the exit code (negative for a
    signal) and the end of its log.
    """

    def __init__(self, what: str, argv: Sequence[str], code: int | None, log_tail: str) -> None:
        ended = "did not start" if code is None else f"ended with code {code}"
        super().__init__(
            f"{what} {ended}\n  command: {shlex.join(argv)}\n  last words:\n{_indent(log_tail)}"
        )
        self.what = what
        self.argv = tuple(argv)
        self.code = code
        self.log_tail = log_tail


class DeadlineError(HostfaultError):
    """A wait ended without what it waited for.

    The message says what was awaited, for how long (seconds), and what was seen last.
    """

    def __init__(self, waiting_for: str, seconds: float, last_seen: str) -> None:
        super().__init__(f"waited {seconds:.1f} s for {waiting_for}; last saw: {last_seen}")
        self.waiting_for = waiting_for
        self.seconds = seconds
        self.last_seen = last_seen


class GuestLostError(HostfaultError):
    """A machine on an emulated CPU reset itself without a word of its kernel's: try it again."""


class ConnectionLostError(HostfaultError):
    """A peer (SSH, QMP, agent) went away while it was needed."""


class ProtocolError(HostfaultError):
    """A peer said something that its protocol does not allow."""


def _indent(text: str) -> str:
    lines = text.strip().splitlines() or ["(nothing)"]
    return "\n".join(f"    {line}" for line in lines)
