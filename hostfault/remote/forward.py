"""Unix sockets of this machine whose connections are carried to another one.

Over SSH by a program there that speaks to a socket (:mod:`hostfault.agent.relay`), so that a server
may forbid every kind of forwarding; into a machine in Bochs over its line
(:mod:`hostfault.remote.line`).
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import paramiko

from hostfault.plumbing.errors import HostfaultError


class Carrier(Protocol):
    """What carries one connection: a channel of paramiko's, or a stream of a line."""

    def sendall(self, data: bytes, /) -> object: ...  # noqa: D102
    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def shutdown_write(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


Open = Callable[[], Carrier]


@contextmanager
def forwarded(path: Path, open_channel: Open) -> Iterator[None]:
    """Listen at a path; each connection gets a channel of its own, until the block ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        carried: list[_Carried] = []
        thread = threading.Thread(target=_accept, args=(listener, open_channel, carried))
        thread.daemon = True
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends the accept
            thread.join(10.0)
            for each in carried:
                each.close()


def _accept(listener: socket.socket, open_channel: Open, carried: list[_Carried]) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        try:
            channel = open_channel()
        except (HostfaultError, paramiko.SSHException, EOFError, OSError):
            peer.close()  # whoever connected sees that it is over, and says so
            continue
        carried.append(_Carried(peer, channel))


class _Carried:
    """One connection, both ways."""

    def __init__(self, peer: socket.socket, channel: Carrier) -> None:
        self._peer, self._channel = peer, channel
        for work in (self._there, self._back):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Hang up on both sides, which ends the threads."""
        self._channel.close()
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def _there(self) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            while data := self._peer.recv(1 << 15):
                self._channel.sendall(data)
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.shutdown_write()

    def _back(self) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            while data := self._channel.recv(1 << 15):
                self._peer.sendall(data)
        self.close()
        self._peer.close()
