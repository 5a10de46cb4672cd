"""What looks after a directory on another machine for as long as somebody speaks to it.

Sent over SSH as text, so it is one file and needs nothing but Python 3.11. It makes a directory
of its own, says what the machine is, unpacks what it is sent, starts an agent for whoever
connects to ``agents`` in there, and relays. When its input ends, or is silent for too long, it
ends every agent and removes the directory: however a connection breaks, nothing stays.

It is told lines of JSON: ``{"unpack": BYTES}`` with a compressed tar archive after it, and
``{}`` from time to time. It says one line for the first greeting and for each archive.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

OLDEST_PYTHON = (3, 11)
ARCHITECTURE = "x86_64"
KVM_GET_API_VERSION, API_VERSION = 0xAE00, 12  # linux/kvm.h
PREFIX, LOCK, AGENTS = "hostfault-", ".in-use", "agents"
AGENT_LOG = "agent-{}.log"  # of the first agent, and so on
SILENCE = 60.0  # seconds without a word after which whoever spoke to us is gone
GRACE = 20.0  # seconds for an agent to end its children
ST_NOEXEC = 8  # statvfs(3)
# Newer Pythons want to be told how far an archive is trusted; that of Debian 12 has no such word.
FILTERED: dict[str, Any] = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}


class Refused(Exception):  # noqa: N818 (it is no error: the answer is no)
    """The machine will not do; the message says why."""


class Busy(Refused):
    """Nor will it do for this moment: somebody else has it."""


def lease(device: Path = Path("/dev/kvm")) -> int:
    """The machine's KVM, for us alone; returns the descriptor that holds it.

    A lock on the device itself: whoever may use it can have it, and it leaves nothing behind.
    """
    try:
        kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(f"there is no {device}: load kvm_intel or kvm_amd") from None
    except PermissionError:
        raise Refused(f"{device} is forbidden to this user: join the group kvm") from None
    except OSError as error:
        raise Refused(f"{device} cannot be opened: {error.strerror}") from None
    try:
        if fcntl.ioctl(kvm, KVM_GET_API_VERSION) != API_VERSION:
            raise Refused(f"{device} speaks another version of KVM's API")
        fcntl.flock(kvm, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(kvm)
        raise Busy("another run of hostfault is using this machine") from None
    except OSError as error:
        os.close(kvm)
        raise Refused(f"{device} is no KVM: {error.strerror}") from None
    return kvm


def check_machine() -> None:
    """Raise :class:`Refused` for a machine that cannot run what we bring."""
    if platform.machine() != ARCHITECTURE:
        raise Refused(f"it is a {platform.machine()}, not an {ARCHITECTURE}")
    if sys.version_info < OLDEST_PYTHON:
        raise Refused(f"its python3 is {platform.python_version()}, older than 3.11")


def make_directory(needed: int) -> tuple[Path, int]:
    """A directory of ours where programs may run and so many bytes fit, and its lock.

    Raises :class:`Refused` with what each place lacks.
    """
    why = []
    for place in dict.fromkeys((os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp")):  # noqa: S108
        try:
            st = os.statvfs(place)
            if st.f_flag & ST_NOEXEC:
                raise OSError(0, "programs may not run there (noexec)")
            free = st.f_bavail * st.f_frsize
            if free < needed:
                raise OSError(0, f"{free >> 20} MiB are free, {needed >> 20} are needed")
            sweep(Path(place))
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        except OSError as error:
            why.append(f"{place}: {error.strerror}")
        else:
            return path, _locked(path)
    raise Refused("no room for our files: " + "; ".join(why))


def _locked(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def sweep(parent: Path) -> None:
    """Remove directories of this user's that a keeper has left which was killed."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
            finally:
                os.close(lock)


def remove(path: Path) -> None:
    """Not with shutil, which is recursive: a guest decides how deep its share is."""
    subprocess.run(["rm", "-rf", "--", str(path)], check=False, timeout=120.0)


def facts(directory: Path) -> dict[str, Any]:
    """What the machine is, for the record."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), value.strip())
    return {
        "directory": str(directory),
        "release": platform.release(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "cpu": told.get("model name", ""),
        "microcode": told.get("microcode", ""),
        "python": sys.executable,
    }


class Keeper:
    """One directory and its agents."""

    def __init__(self, directory: Path, words: BinaryIO, answers: BinaryIO) -> None:
        self._directory = directory
        self._words, self._answers = words, answers
        self._agents: list[subprocess.Popen[bytes]] = []
        self._started = 0
        self._heard = time.monotonic()
        self._over = threading.Event()

    def serve(self) -> None:
        """Until nobody speaks to us any more."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._directory / AGENTS))
            listener.listen(4)
            threading.Thread(target=self._listen, daemon=True).start()
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                while not self._over.is_set() and time.monotonic() - self._heard < SILENCE:
                    for _ in selector.select(0.2):
                        self._start_agent(listener.accept()[0])
                    self._agents = [each for each in self._agents if each.poll() is None]

    def end(self) -> None:
        """End the agents, which end what they have started; remove the directory."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for agent in self._agents:
                with contextlib.suppress(ProcessLookupError):
                    agent.send_signal(number)
            until = time.monotonic() + GRACE
            for agent in self._agents:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(max(0.1, until - time.monotonic()))
        remove(self._directory)

    def _listen(self) -> None:
        """Take what we are told, in a thread: an archive may take minutes to come."""
        try:
            while line := self._words.readline():
                self._heard = time.monotonic()
                size = json.loads(line).get("unpack")
                if size is not None:
                    self._say(self._unpack(int(size)))
        except (OSError, ValueError, EOFError):
            pass
        self._over.set()

    def _unpack(self, size: int) -> dict[str, str]:
        archive = Incoming(self, self._words, size)
        try:
            with tarfile.open(fileobj=archive, mode="r|gz") as tar:
                tar.extractall(self._directory, **FILTERED)  # noqa: S202 (it is ours)
            why = ""
        except (OSError, tarfile.TarError, EOFError) as error:
            why = f"{type(error).__name__}: {error}"
        while archive.read(1 << 16):  # what was not looked at is no word to us
            pass
        return {"error": why} if why else {}

    def heard(self) -> None:
        """Whoever sends is there."""
        self._heard = time.monotonic()

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer).encode() + b"\n")
        self._answers.flush()

    def _start_agent(self, connection: socket.socket) -> None:
        self._started += 1
        number = self._started
        argv = [sys.executable, "-P", "-m", "hostfault.agent", "--stdio", str(connection.fileno())]
        argv += ["--directory", str(self._directory / f"run-{number}")]
        env = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONDONTWRITEBYTECODE": "1"}
        log_file = self._directory / AGENT_LOG.format(number)
        with log_file.open("wb") as log, connection:
            agent = subprocess.Popen(
                argv,
                env={**env, "PYTHONPATH": str(self._directory / "python")},
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(connection.fileno(),),
                start_new_session=True,
            )
        self._agents.append(agent)


class Incoming(io.RawIOBase):
    """So many bytes of a stream, as a file to read."""

    def __init__(self, keeper: Keeper, stream: BinaryIO, size: int) -> None:
        self._keeper, self._stream, self._left = keeper, stream, size

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As :class:`io.RawIOBase` has it. Raises EOFError if there are fewer."""
        wanted = min(len(buffer), self._left)
        data = self._stream.read1(wanted) if wanted else b""  # type: ignore[attr-defined]
        if wanted and not data:
            raise EOFError("it hung up within an archive")
        self._keeper.heard()
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)


def main(needed: int) -> int:  # of a refusal; else it does not return
    """Greet, then keep the directory; see the module's text."""
    words, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        check_machine()
        kvm = lease()
        directory, lock = make_directory(needed)
    except Refused as error:
        told = {"error": str(error), "busy": isinstance(error, Busy)}
        print(json.dumps(told), flush=True)
        return 1
    keeper = Keeper(directory, words, answers)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        print(json.dumps(facts(directory)), flush=True)
        keeper.serve()
    finally:
        keeper.end()
        os.close(lock)
        os.close(kvm)
        os._exit(0)  # the thread that listens may wait for words that never come
