"""The daemon in a process of its own, made by fork, and what must hold of it whatever it is asked.

Forked, it starts within a millisecond, and what ends it (a signal, a traceback) ends nobody else.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from daxfs_frontend import WINDOW
from daxfs_guest import Guest

from hostfault.daxfs.device import DaemonSettings, Device
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.vhost_user import PeerError
from hostfault.plumbing.errors import DeadlineError

FORK = multiprocessing.get_context("fork")
BROKE_PROTOCOL = 10  # the daemon's exit code when it left its front-end
MAX_NODES, MAX_HANDLES = 24, 8  # small, so that they are met
MAX_ANSWER = 0.1  # seconds of the daemon's CPU time for one request
MAX_GROWTH = 64 << 20  # bytes of memory
SECRET = b"nobody's business"
T = TypeVar("T")


found: list[FoundError] = []
"""All that was found. Hypothesis may show something else of it: that it did not happen again."""


class FoundError(AssertionError):
    """Something is wrong with the daemon. The subclass's ``kind`` is what is counted."""

    kind = "differences"

    def __init__(self, what: str) -> None:
        super().__init__(what)
        found.append(self)


class WedgeError(FoundError):
    """It did not answer."""

    kind = "wedges"


class EscapeError(FoundError):
    """It touched what is not its share."""

    kind = "escapes"


class LeakError(FoundError):
    """It has more files open, or more memory, than before."""

    kind = "leaks"


class SlowError(FoundError):
    """It computed too long for one answer."""

    kind = "slow answers"


class CrashError(FoundError):
    """It ended by itself, or noted a bug of its own."""

    kind = "crashes"


KINDS = (CrashError, WedgeError, EscapeError, LeakError, SlowError, FoundError)


class Sandbox:
    """A shared directory among things that are not shared."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="hostfault-fuzz-"))
        self.shared = self.top / "shared"
        self.log = self.top / "log"
        self.errors = self.top / "stderr"
        self.log.touch()
        self.errors.touch()
        self.shared.mkdir()
        (self.top / "secret").write_bytes(SECRET)
        (self.top / "outside").mkdir()
        os.utime(self.top / "outside", (1, 1))
        self._inodes = self._look()

    def _look(self) -> dict[str, tuple[int, int]]:
        found = {path.name: path.lstat() for path in self.top.iterdir()}
        return {name: (st.st_ino, stat.S_IFMT(st.st_mode)) for name, st in found.items()}

    def check(self) -> None:
        """Raise :class:`EscapeError` if anything but the share was touched."""
        if self._look() != self._inodes:
            raise EscapeError(f"beside the share there is now {sorted(self._look())}")
        if (self.top / "secret").read_bytes() != SECRET:
            raise EscapeError("the secret was written to")
        if (self.top / "outside").stat().st_mtime != 1 or any((self.top / "outside").iterdir()):
            raise EscapeError("the directory outside was written to")

    def close(self) -> None:
        """Remove it; by rm, as a guest decides how deep it is."""
        subprocess.run(["rm", "-rf", "--", str(self.top)], check=False, timeout=60)
        if self.top.exists():
            shutil.rmtree(self.top, ignore_errors=True)


class Child:
    """The daemon's process, as the front-end knows one."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        self._process = process
        self.pid = process.pid
        assert self.pid is not None
        self._clock = (~self.pid << 3) | 2  # clock_getcpuclockid(3) of another process

    def wait(self, timeout: float) -> int:
        """Its exit code, negative for a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise WedgeError(f"it did not end within {timeout} s")
        return self._process.exitcode

    def cpu(self) -> float:
        """Seconds of CPU time so far; 0 once it has ended."""
        with suppress(OSError):
            return time.clock_gettime(self._clock)
        return 0.0

    def memory(self) -> int:
        """Bytes in RAM."""
        assert self.pid is not None
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def kill(self) -> None:
        """End it."""
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(10)


@contextmanager
def served(sandbox: Sandbox) -> Iterator[Guest]:
    """A front-end with a daemon at its other end."""
    ours, theirs = socket.socketpair()
    process = FORK.Process(target=_serve, args=(ours, theirs, sandbox), daemon=True)
    process.start()
    theirs.close()
    child = Child(process)
    guest = Guest(ours, child, sandbox.log)  # type: ignore[arg-type]
    try:
        yield guest
    finally:
        guest.close()
        child.kill()
        process.close()


def _serve(ours: socket.socket, theirs: socket.socket, sandbox: Sandbox) -> None:
    """The life of the daemon."""
    gc.freeze()  # what the fuzzer has made is no work for the daemon's collector
    faulthandler.disable()  # pytest's would print what the exit code tells
    ours.close()
    os.umask(0)
    settings = DaemonSettings(sandbox.shared, WINDOW, "fuzz", MAX_NODES, MAX_HANDLES)
    with sandbox.log.open("ab", buffering=0) as stream, theirs:
        try:
            Device(theirs, settings, EventLog(stream)).serve()
        except PeerError:
            sys.exit(BROKE_PROTOCOL)
        except Exception:
            sandbox.errors.write_text(traceback.format_exc())
            sys.exit(1)


def timed(guest: Guest, attempt: Callable[[], T]) -> T:
    """Do something; raise :class:`WedgeError` or :class:`SlowError` for an answer like that."""
    child = guest.daemon
    assert isinstance(child, Child)
    before = child.cpu()
    try:
        result = attempt()
    except (DeadlineError, TimeoutError) as error:
        raise WedgeError(str(error)) from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise CrashError(f"it hung up: {error}") from error
    finally:
        spent = child.cpu() - before
    if spent > MAX_ANSWER:
        raise SlowError(f"{spent:.3f} s of CPU time for one answer")
    return result


def check_log(sandbox: Sandbox) -> None:
    """Raise :class:`CrashError` if the daemon noted a bug, or printed something."""
    for line in sandbox.log.read_text().splitlines():
        if json.loads(line)["event"] == "bug":
            raise CrashError(line)
    printed = sandbox.errors.read_text()
    if printed:
        raise CrashError(printed)


def check_end(guest: Guest, sandbox: Sandbox, codes: tuple[int, ...] = (0,)) -> None:
    """Hang up; raise if the daemon does not end as it should, or left traces."""
    guest.main.close()
    code = guest.daemon.wait(10)
    if code not in codes:
        raise CrashError(f"it ended with {code}: {sandbox.errors.read_text()[-2000:]}")
    check_log(sandbox)
    sandbox.check()
