"""The probe (images/probe/probe.c): the guest task that touches the page.

The guest is untrusted: every line is checked, and nothing that it says is needed for the
verdict of a spin.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hostfault.backing import GuestView
from hostfault.case.model import Outcome, ProbeReport
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.channel import Channel, steps
from hostfault.remote.shell import Shell, Stream

COMMAND = "/bin/probe --wait"


class Probe:
    """A probe that runs in the guest and waits for its request; see images/probe/probe.c."""

    def __init__(self, stream: Stream) -> None:
        self._channel = Channel("probe", stream)
        self._ended = False

    def request(
        self,
        view: GuestView,
        access: str,
        stored: int,
        *,
        page_first: bool,
        seed: int = 0,
        task: str = "",
    ) -> None:
        """Tell it what to touch, and how; what it leaves to chance follows from ``seed``.

        ``task`` is on which vCPUs its task is to be: "pinned" to one, "migrating", "" for any.

        ``page_first`` lets it touch the page itself before it waits for the word, else the first
        page of the range.
        """
        place = f" --task {task}" if task else ""
        self._channel.say(
            f"--file {view.path} --start {view.start} --length {view.length} "
            f"--offset {view.offset} --first {view.offset if page_first else 0} "
            f"--access {access} --value {stored} --seed {seed}{place}"
        )

    def arm(self, deadline: Deadline) -> None:
        """Wait until it has touched the page once and waits for the word."""
        self._channel.wait_for("armed", deadline)

    def go(self) -> None:
        """Give the word: the next thing that the probe does is the access."""
        self._channel.say("go")

    def listen(self, seconds: float) -> bool:
        """Take in what it says, for ``seconds`` at most; False if nothing more is to come."""
        if not self._ended and not self.report().outcome:
            self._ended = not self._channel.listen(seconds)
            return not self._ended
        return False

    def report(self) -> ProbeReport:
        """What it has said so far."""
        return dataclasses.replace(parse(self._channel.text), ended=self._ended)


def start(guest: Shell) -> Stream:
    """Start a probe in the guest; it waits for its request when this returns."""
    deadline = Deadline(20.0, "the probe to start")
    stream = guest.open(COMMAND, deadline)
    wait_started(stream, deadline)
    return stream


def wait_started(stream: Stream, deadline: Deadline) -> None:
    """Wait until a probe that was started waits for its request."""
    Channel("probe", stream).wait_for("waiting", deadline)


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
