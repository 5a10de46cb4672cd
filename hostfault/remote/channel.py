"""A channel to a program in the guest: words to it, and steps from it as lines of JSON.

The guest is untrusted: what it says is bounded, and a line that is no JSON object is no step.
"""

from __future__ import annotations

import json
from typing import Any

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.remote.shell import Stream

LIMIT = 256 * 1024  # bytes that a program may say


class Channel:
    """A program that runs in the guest; ``name`` is for messages.

    Every method raises :class:`ConnectionLostError` if the connection is gone.
    """

    def __init__(self, name: str, stream: Stream) -> None:
        self._name = name
        self._stream = stream
        self._said = b""

    @property
    def text(self) -> str:
        """All that it has said."""
        return self._said.decode(errors="replace")

    def steps(self) -> list[dict[str, Any]]:
        """The steps that it has reported."""
        return steps(self.text)

    def say(self, line: str) -> None:
        """Say one line to it."""
        try:
            self._stream.sendall(f"{line}\n".encode())
        except OSError as error:
            raise ConnectionLostError(f"the {self._name} is gone: {error}") from error

    def wait_for(self, name: str, deadline: Deadline) -> dict[str, Any]:
        """The first step of that name.

        Raises :class:`HostfaultError` with its words if it failed,
        :class:`ConnectionLostError` if it ended before, and
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
                raise ConnectionLostError(
                    f"the {self._name} ended before it was {name}; it said: {self.text[-400:]!r}"
                )

    def listen(self, seconds: float) -> bool:
        """Take in what comes within ``seconds``; False if it has said its last."""
        self._stream.settimeout(max(0.001, seconds))
        try:
            data = self._stream.recv(65536)
        except TimeoutError:
            return True
        except OSError as error:
            raise ConnectionLostError(f"the {self._name} is gone: {error}") from error
        self._said = (self._said + data)[:LIMIT]
        return bool(data)

    def drain(self) -> None:
        """Take in what has come already."""
        size = -1
        while size != len(self._said):
            size = len(self._said)
            if not self.listen(0.0):
                return


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
