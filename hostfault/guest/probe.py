"""The talk with the probe (images/probe/probe.c): the guest task that touches the page.

The guest is untrusted: every line is checked, and nothing that it says is needed for the
verdict of a spin.
"""

from __future__ import annotations

import json
from typing import Any

import paramiko

from hostfault.deadline import Deadline
from hostfault.errors import ConnectionLostError, HostfaultError
from hostfault.model import Access, Outcome, ProbeReport
from hostfault.ssh import Shell

LIMIT = 64 * 1024  # bytes that a probe may say


class Probe:
    """A probe that runs in the guest."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._text = b""

    def arm(self, deadline: Deadline) -> None:
        """Wait until it has touched the page once and waits for the word."""
        while "armed" not in (step.get("step") for step in self._steps()):
            failed = [step for step in self._steps() if step.get("step") == "failed"]
            if failed:
                raise HostfaultError(f"the probe could not prepare: {failed[0]}")
            deadline.saw(self._text.decode(errors="replace"))
            deadline.check()
            self._receive(min(1.0, deadline.left()))

    def go(self) -> None:
        """Give the word: the next thing that the probe does is the access."""
        try:
            self._channel.sendall(b"go\n")
        except OSError as error:
            raise ConnectionLostError(f"the probe is gone: {error}") from error

    def listen(self, seconds: float) -> None:
        """Take in what it says, for ``seconds`` at most."""
        if not self.report().outcome:
            self._receive(seconds, must=False)

    def report(self) -> ProbeReport:
        """What it has said so far."""
        return parse(self._text.decode(errors="replace"))

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def _steps(self) -> list[dict[str, Any]]:
        return _steps(self._text.decode(errors="replace"))

    def _receive(self, seconds: float, must: bool = True) -> None:
        self._channel.settimeout(max(0.001, seconds))
        try:
            data = self._channel.recv(4096)
        except TimeoutError:
            return
        except OSError as error:
            raise ConnectionLostError(f"the probe is gone: {error}") from error
        if not data and must:
            said = self._text.decode(errors="replace")
            raise HostfaultError(f"the probe ended before it was armed; it said: {said!r}")
        self._text = (self._text + data)[:LIMIT]


def start(guest: Shell, path: str, offset: int, length: int, access: Access, stored: int) -> Probe:
    """Start the probe in the guest; see images/probe/probe.c for its options."""
    command = (
        f"/bin/probe --file {path} --offset {offset} --length {length} "
        f"--access {access} --value {stored}"
    )
    return Probe(guest.open(command, Deadline(20.0, "the probe to start")))


def parse(text: str) -> ProbeReport:
    """Read what a probe said. What it did not say is 0; lines that are no JSON are kept."""
    steps = _steps(text)
    first = {name: step for step in reversed(steps) if (name := str(step.get("step")))}
    said = first.get("outcome")
    return ProbeReport(
        pid=_number(first.get("started", {}), "pid"),
        mapping=_number(first.get("mapped", {}), "mapping"),
        address=_number(first.get("armed", {}), "address"),
        rip=_number(first.get("armed", {}), "rip"),
        steps=tuple(text.splitlines()),
        outcome=None if said is None else _outcome(said),
    )


def _outcome(said: dict[str, Any]) -> Outcome:
    kind = str(said.get("kind"))
    value = _number(said, kind) if kind in ("value", "signal", "errno") else 0
    return Outcome(
        kind, value, _number(said, "code"), _number(said, "address"), _number(said, "rip")
    )


def _steps(text: str) -> list[dict[str, Any]]:
    steps = []
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            steps.append(step)
    return steps


def _number(step: dict[str, Any], name: str) -> int:
    value = step.get(name, 0)
    try:
        return int(value, 0) if isinstance(value, str) else int(value)
    except (TypeError, ValueError):
        return 0
