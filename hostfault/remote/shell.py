"""A shell on another machine: commands, and programs that one talks with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hostfault.plumbing.deadline import Deadline


@dataclass(frozen=True)
class Answer:
    """What a command said, and its exit code."""

    code: int
    text: str


class Stream(Protocol):
    """Bytes to and from a program: what a socket and an SSH channel have in common."""

    def settimeout(self, timeout: float | None, /) -> None: ...  # noqa: D102
    def sendall(self, data: bytes, /) -> None: ...  # noqa: D102
    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Shell(Protocol):
    """A way to run commands on one machine."""

    name: str

    def run(self, command: str, deadline: Deadline) -> Answer:
        """Run a command to its end; standard error is part of the text.

        Raises :class:`~hostfault.plumbing.errors.ConnectionLostError` if the machine does not
        answer in time.
        """

    def check(self, command: str, deadline: Deadline) -> str:
        """Run a command that must succeed; returns its text. Raises ``HostfaultError``."""

    def open(self, command: str, deadline: Deadline) -> Stream:
        """Start a command, for a talk with it."""

    def close(self) -> None:
        """Hang up."""
