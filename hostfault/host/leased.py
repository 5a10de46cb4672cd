"""A machine of a lab, leased for a run: a connection over SSH, and a keeper at its other end.

The keeper (:mod:`hostfault.agent.keeper`) holds a lock on the machine's /dev/kvm and a directory of
its own for our files. It hears from us every few seconds; when it does not, it ends what it has
started and removes that directory.
"""

from __future__ import annotations

import io
import json
import logging
import shlex
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from hostfault.agent import keeper
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, SetupError
from hostfault.remote.openssh import Target, open_connection

log = logging.getLogger(__name__)

CONNECT_PATIENCE = 30.0  # seconds
GREETING_PATIENCE = 60.0  # ... for Python to start there, and look around
SEND_PATIENCE = 300.0  # ... for one archive; 20 MiB
SIGN_OF_LIFE = 10.0  # seconds between two; the keeper waits for six of them
BOOT_ID = "/proc/sys/kernel/random/boot_id"
NOT_FOUND = 127  # the shell's exit code for a program that is not there
_LEAST = "import sys; exec(compile(sys.stdin.buffer.read({size}), 'keeper', 'exec')); "
_START = "sys.exit(main({needed}))"


class BusyError(SetupError):
    """Another run has leased the machine."""


@dataclass(frozen=True)
class KeeperFacts:
    """What the keeper said of its machine."""

    directory: str  # the keeper's, for our files
    release: str
    boot_id: str
    cpu: str
    microcode: str
    python: str  # path of its interpreter


class LeasedMachine:
    """Get one from :func:`leased`. Its methods raise :class:`ConnectionLostError`."""

    def __init__(
        self, target: Target, client: paramiko.SSHClient, words: paramiko.Channel, told: Any
    ) -> None:
        self.target = target
        self.facts = KeeperFacts(**told)
        self.agents = 0  # that were asked for
        self._client = client
        self._words = words  # to the keeper, and its answers
        self._lock = threading.Lock()  # of the words
        self._over = threading.Event()
        self._there: set[str] = set()  # files that it has
        self._thread = threading.Thread(target=self._show_life, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as we know."""
        transport = self._client.get_transport()
        return bool(transport and transport.is_active()) and not self._words.closed

    def send(self, archive: Path) -> None:
        """Have an archive (tar, gzip) unpacked in the directory."""
        self._send(archive.read_bytes(), archive.name)

    def put(self, files: Mapping[str, Path]) -> None:
        """Bring files there, each by its path in the directory; none is sent twice."""
        missing = {name: path for name, path in files.items() if name not in self._there}
        if not missing:
            return
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
            for name, path in missing.items():
                tar.add(path, name, filter=_readable)
        self._send(packed.getvalue(), ", ".join(sorted(missing))[:80])
        self._there |= set(missing)

    def channel(self, module: str, *arguments: str) -> paramiko.Channel:
        """Start one of our programs there, once they were put; its input and output."""
        line = [self.facts.python, "-P", "-m", module, *arguments]
        environment = f"PYTHONPATH={self.facts.directory}/python PYTHONDONTWRITEBYTECODE=1"
        return self._run(f"exec env {environment} {shlex.join(line)}")

    def read(self, path: str, limit: int = 20000) -> str:
        """The end of a file in the directory; "" if there is none, or no connection any more."""
        with suppress(ConnectionLostError, paramiko.SSHException, EOFError, OSError):
            channel = self._run(f"tail -c {limit} {shlex.quote(f'{self.facts.directory}/{path}')}")
            channel.settimeout(SIGN_OF_LIFE)
            with channel.makefile("rb") as stream:
                return stream.read(limit).decode(errors="replace")
        return ""

    def give_up(self) -> None:
        """Break the connection, if it is not broken: the machine does not answer."""
        self._over.set()
        self._client.close()

    def close(self) -> None:
        """Have everything removed there, and hang up."""
        self._over.set()
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._words.shutdown_write()
            if self.alive and self._words.status_event.wait(keeper.GRACE * 2 + 10.0):
                log.info("%s has removed its files", self.target)
        self._client.close()
        self._thread.join(SIGN_OF_LIFE)

    def _run(self, command: str) -> paramiko.Channel:
        transport = self._client.get_transport()
        try:
            if transport is None:
                raise EOFError("it was closed")
            channel = transport.open_session(timeout=CONNECT_PATIENCE)
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise ConnectionLostError(f"{self.target}: the connection broke: {error}") from error
        return channel

    def _send(self, data: bytes, what: str) -> None:
        log.info("copying %s to %s (%d KiB)", what, self.target, len(data) >> 10)
        deadline = Deadline(SEND_PATIENCE, f"{self.target} to take {what}")
        try:
            with self._lock:
                self._words.sendall(json.dumps({"unpack": len(data)}).encode() + b"\n")
                self._words.sendall(data)
                answer = _line(self._words, deadline)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise ConnectionLostError(
                f"{self.target}: the connection broke while {what} was copied: {error}"
            ) from error
        if why := answer.get("error"):
            raise SetupError(f"{self.target}: {what} cannot be unpacked there: {why}")

    def _show_life(self) -> None:
        while not self._over.wait(SIGN_OF_LIFE):
            with suppress(OSError, EOFError, paramiko.SSHException), self._lock:
                self._words.sendall(b"{}\n")


@contextmanager
def leased(target: Target, needed: int) -> Iterator[LeasedMachine]:
    """The machine, for the length of the block; ``needed`` are bytes for our files there.

    Raises :class:`SetupError` with the one thing that is wrong with it, and
    :class:`ConnectionLostError` if it cannot be reached.
    """
    log.info("connecting to %s", target)
    with ExitStack() as stack:
        client = open_connection(target, Deadline(CONNECT_PATIENCE, f"SSH of {target}"))
        stack.callback(client.close)
        words, told = _start_keeper(target, client, needed)
        machine = LeasedMachine(target, client, words, told)
        stack.callback(machine.close)
        yield machine


def boot_id_of(target: Target, deadline: Deadline) -> str:
    """The machine's boot id, by a connection of its own. Raises :class:`HostfaultError`."""
    with _closing(open_connection(target, deadline)) as client:
        _, output, _ = client.exec_command(f"cat {BOOT_ID}", timeout=max(1.0, deadline.left()))
        return output.read(64).decode(errors="replace").strip()


@contextmanager
def _closing(client: paramiko.SSHClient) -> Iterator[paramiko.SSHClient]:
    try:
        yield client
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise ConnectionLostError(f"the connection broke: {error}") from error
    finally:
        client.close()


def _start_keeper(
    target: Target, client: paramiko.SSHClient, needed: int
) -> tuple[paramiko.Channel, Mapping[str, Any]]:
    source = Path(keeper.__file__).read_bytes()
    program = _LEAST.format(size=len(source)) + _START.format(needed=needed)
    transport = client.get_transport()
    assert transport is not None
    deadline = Deadline(GREETING_PATIENCE, f"{target} to say what it is")
    try:
        channel = transport.open_session(timeout=CONNECT_PATIENCE)
        channel.exec_command(f"exec python3 -I -c {shlex.quote(program)}")
        with suppress(OSError):  # it may have ended already, which is told next
            channel.sendall(source)
        told = _line(channel, deadline)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _why_no_keeper(target, channel, error) from error
    if why := told.get("error"):
        raise (BusyError if told.get("busy") else SetupError)(f"{target}: {why}")
    return channel, told


def _why_no_keeper(target: Target, channel: paramiko.Channel, error: Exception) -> HostfaultError:
    if channel.status_event.wait(5.0) and channel.exit_status == NOT_FOUND:
        return SetupError(f"{target}: there is no python3 on it; 3.11 or newer is needed")
    words = b""
    with suppress(OSError, paramiko.SSHException):
        channel.settimeout(1.0)
        words = channel.recv_stderr(2000)
    said = words.decode(errors="replace").strip()
    return SetupError(f"{target}: our program does not start there: {said or error}")


def _line(channel: paramiko.Channel, deadline: Deadline) -> dict[str, Any]:
    """One line of JSON. Raises EOFError if there is none, and TimeoutError (an OSError)."""
    said = b""
    while not said.endswith(b"\n"):
        channel.settimeout(max(0.1, deadline.left()))
        data = channel.recv(1)
        if not data:
            raise EOFError(f"it hung up; it said {said[-200:]!r}")
        said += data
    try:
        told = json.loads(said)
    except ValueError:
        raise EOFError(f"it speaks another language: {said[-200:]!r}") from None
    return dict(told)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's in particular; the directory above is for its owner alone."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
