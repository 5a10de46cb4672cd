"""The talk with the probe (images/probe/probe.c): the guest task that touches the page.

The guest is untrusted: every line is checked, and nothing that it says is needed for the
verdict of a spin.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hostfault.case.model import Access, Outcome, ProbeReport
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.channel import Talk, steps
from hostfault.remote.ssh import Shell


class Probe:
    """A probe that runs in the guest."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._ended = False

    def arm(self, deadline: Deadline) -> None:
        """Wait until it has touched the page once and waits for the word."""
        self._talk.wait_for("armed", deadline)

    def go(self) -> None:
        """Give the word: the next thing that the probe does is the access."""
        self._talk.say("go")

    def listen(self, seconds: float) -> bool:
        """Take in what it says, for ``seconds`` at most; False if nothing more is to come."""
        if not self._ended and not self.report().outcome:
            self._ended = not self._talk.listen(seconds)
            return not self._ended
        return False

    def report(self) -> ProbeReport:
        """What it has said so far."""
        return dataclasses.replace(parse(self._talk.text), ended=self._ended)


def start(guest: Shell, path: str, offset: int, length: int, access: Access, stored: int) -> Probe:
    """Start the probe in the guest; see images/probe/probe.c for its options."""
    command = (
        f"/bin/probe --file {path} --offset {offset} --length {length} "
        f"--access {access} --value {stored}"
    )
    return Probe(Talk("probe", guest.open(command, Deadline(20.0, "the probe to start"))))


def parse(text: str) -> ProbeReport:
    """Read what a probe said. What it did not say is 0; lines that are no JSON are kept."""
    first = {name: step for step in reversed(steps(text)) if (name := str(step.get("step")))}
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


def _number(step: dict[str, Any], name: str) -> int:
    value = step.get(name, 0)
    try:
        return int(value, 0) if isinstance(value, str) else int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
