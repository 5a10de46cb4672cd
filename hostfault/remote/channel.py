"""The talk with a program in the guest: words to it, and steps from it as lines of JSON.

The guest is untrusted: what it says is bounded, and a line that is no JSON object is no step.
"""

from __future__ import annotations

import json
from typing import Any

import paramiko

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError

LIMIT = 256 * 1024  # bytes that a program may say


class Talk:
    """A program that runs in the guest; ``name`` is for messages.

    Every method raises :class:`ConnectionLostError` if the connection is gone.
    """

    def __init__(self, name: str, channel: paramiko.Channel) -> None:
        self._name = name
        self._channel = channel
        self._said = b""

    @property
    def text(self) -> str:
        """All that it has said."""
        return self._said.decode(errors="replace")

    def steps(self) -> list[dict[str, Any]]:
        """The steps that it has told."""
        return steps(self.text)

    def say(self, line: str) -> None:
        """Say one line to it."""
        try:
            self._channel.sendall(f"{line}\n".encode())
        except OSError as error:
            raise ConnectionLostError(f"the {self._name} is gone: {error}") from error

    def wait_for(self, name: str, deadline: Deadline) -> dict[str, Any]:
        """The first step of that name.

        Raises :class:`HostfaultError` with its words if it failed or ended before, and
        :class:`~hostfault.plumbing.errors.DeadlineError`.
        """
        while True:
            told: dict[str, dict[str, Any]] = {
                str(step.get("step")): step for step in reversed(self.steps())
            }
            if name in told:
                return told[name]
            if "failed" in told:
                raise HostfaultError(f"the {self._name} could not prepare: {told['failed']}")
            deadline.saw(self.text)
            deadline.check()
            if not self.listen(min(1.0, deadline.left())):
                raise HostfaultError(
                    f"the {self._name} ended before it was {name}; it said: {self.text[-400:]!r}"
                )

    def listen(self, seconds: float) -> bool:
        """Take in what comes within ``seconds``; False if it has said its last."""
        self._channel.settimeout(max(0.001, seconds))
        try:
            data = self._channel.recv(65536)
        except TimeoutError:
            return True
        except OSError as error:
            raise ConnectionLostError(f"the {self._name} is gone: {error}") from error
        self._said = (self._said + data)[:LIMIT]
        return bool(data)

    def has_more(self) -> bool:
        """Whether it has said something that was not taken in yet."""
        return self._channel.recv_ready()


def steps(text: str) -> list[dict[str, Any]]:
    """The steps in what a program said; a line that is not complete yet is left out."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except (ValueError, RecursionError):  # the latter: nested too deeply
            continue
        if isinstance(step, dict):
            found.append(step)
    return found
