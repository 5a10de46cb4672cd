"""SSH with paramiko, to machines that are reached through a forwarded Unix socket."""

from __future__ import annotations

import logging
import socket
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paramiko

from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.shell import Answer

# What goes wrong is raised; paramiko prints a traceback for every banner that does not come.
logging.getLogger("paramiko").propagate = False
logging.getLogger("paramiko").addHandler(logging.NullHandler())

OUTPUT_LIMIT = 1 << 20  # bytes of a command's output that are kept: the guest is untrusted
NO_CODE = -1  # paramiko's exit code of a command that reported none


class SshShell:
    """A connection of our own to one machine; see :class:`~hostfault.remote.shell.Shell`."""

    def __init__(self, name: str, transport: paramiko.Transport) -> None:
        self.name = name
        self._transport = transport

    def run(self, command: str, deadline: Deadline) -> Answer:
        """Run a command to its end; standard error is part of the text.

        Raises :class:`ConnectionLostError` if the machine does not answer in time.
        """
        with (
            self._or_lost(f"no answer to {command!r}", deadline),
            self.open(command, deadline) as channel,
            _closed_at(deadline, channel),
        ):
            text = _read_all(channel)
            code = channel.recv_exit_status()
            if code == NO_CODE:
                raise EOFError("it hung up without an exit code")
            return Answer(code, text)

    def check(self, command: str, deadline: Deadline) -> str:
        """Run a command that must succeed; returns its text."""
        answer = self.run(command, deadline)
        if answer.code != 0:
            raise HostfaultError(
                f"{self.name}: {command!r} failed with {answer.code}: {answer.text.strip()}"
            )
        return answer.text

    def open(self, command: str, deadline: Deadline) -> paramiko.Channel:
        """Start a command and return its channel, for a talk with it.

        Raises :class:`ConnectionLostError` if the machine does not answer in time.
        """
        with self._or_lost(f"no answer to {command!r}", deadline):
            channel = self._transport.open_session(timeout=_timeout(deadline))
            with _closed_at(deadline, channel):
                channel.settimeout(_timeout(deadline))
                channel.set_combine_stderr(True)
                channel.exec_command(command)
            return channel

    def open_terminal(self, term: str, columns: int, lines: int) -> paramiko.Channel:
        """A login shell on a terminal of the far machine."""
        deadline = Deadline(20.0, "a terminal")
        with self._or_lost("no terminal", deadline):
            channel = self._transport.open_session(timeout=_timeout(deadline))
            with _closed_at(deadline, channel):
                channel.get_pty(term, columns, lines)
                channel.invoke_shell()
            return channel

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    @contextmanager
    def _or_lost(self, what: str, deadline: Deadline) -> Iterator[None]:
        """Turn what goes wrong into :class:`ConnectionLostError`."""
        try:
            yield
        except (paramiko.SSHException, EOFError, OSError) as error:
            why = deadline.error() if deadline.passed() else error
            raise ConnectionLostError(
                f"{self.name}: {what}: {why or type(error).__name__}"
            ) from error


def connect(name: str, path: Path, identity: Identity, deadline: Deadline) -> SshShell:
    """Connect and log in as root; try again until the deadline.

    QEMU's user-mode network accepts before the far side listens, so a missing banner means
    "not yet". Raises :class:`~hostfault.plumbing.errors.DeadlineError`.
    """

    def attempt() -> SshShell | None:
        try:
            return SshShell(name, _log_in(path, identity, deadline))
        except (paramiko.SSHException, EOFError, OSError) as error:
            deadline.saw(f"{type(error).__name__}: {error}")
            return None

    return poll(deadline, attempt, interval=0.1)


def _log_in(path: Path, identity: Identity, deadline: Deadline) -> paramiko.Transport:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(_timeout(deadline))
    peer.connect(str(path))
    transport = paramiko.Transport(peer)
    transport.banner_timeout = min(3.0, _timeout(deadline))
    transport.handshake_timeout = min(10.0, _timeout(deadline))
    try:
        transport.connect(
            hostkey=paramiko.Ed25519Key(data=b64decode(identity.host_public.split()[1])),
            username="root",
            pkey=paramiko.Ed25519Key(filename=str(identity.client_key)),
        )
    except BaseException:
        transport.close()
        raise
    return transport


def _timeout(deadline: Deadline) -> float:
    """For paramiko, to which zero means something else."""
    return max(0.1, deadline.left())


@contextmanager
def _closed_at(deadline: Deadline, channel: paramiko.Channel) -> Iterator[None]:
    """Close the channel at the deadline, which ends whatever waits for it.

    Two of paramiko's waits know no time-out (for the reply to a request, and for the exit code),
    and with each byte that comes the one for data begins anew.
    """

    def close() -> None:
        with suppress(paramiko.SSHException, EOFError, OSError):  # gone already, and so are waits
            channel.close()

    timer = threading.Timer(deadline.left(), close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read_all(channel: paramiko.Channel) -> str:
    kept = b""
    while True:
        data = channel.recv(65536)
        if not data:
            return kept.decode(errors="replace")
        kept = (kept + data)[:OUTPUT_LIMIT]
