"""The talk with the crowd (images/probe/crowd.c): many guest tasks, some of which touch pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paramiko

from hostfault.deadline import Deadline
from hostfault.errors import ConnectionLostError, HostfaultError, ProtocolError
from hostfault.ssh import Shell

LIMIT = 256 * 1024  # bytes that a crowd may say


@dataclass(frozen=True)
class Task:
    """One guest task, as the crowd told it."""

    number: int
    pid: int
    page: int | None  # of the file; None: it is busy and touches nothing
    address: int  # guest virtual address of that page


@dataclass(frozen=True)
class Armed:
    """What has to be known to tell the tasks apart from outside."""

    rip: int  # address of the touching instruction
    mark: int  # what r15 holds in user space: mark + the task's number
    tasks: tuple[Task, ...]


class Crowd:
    """A crowd that runs in the guest."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._text = b""

    def mapped(self, deadline: Deadline) -> None:
        """Wait until the whole file is mapped."""
        self._until("mapped", deadline)

    def arm(self, pages: Sequence[int], deadline: Deadline) -> Armed:
        """Say which pages to touch; wait until every toucher has done so once."""
        self._say(f"pages {' '.join(map(str, pages))}")
        armed = self._until("armed", deadline)
        tasks = tuple(_task(step) for step in self._steps() if step.get("step") == "task")
        touched = [task.page for task in tasks if task.page is not None]
        if touched != list(pages):
            raise ProtocolError(f"the crowd was told to touch {list(pages)}, and says {touched}")
        return Armed(int(armed["rip"], 16), int(armed["mark"], 16), tasks)

    def go(self) -> None:
        """Give the word."""
        self._say("go")

    def finished(self) -> tuple[int, int] | None:
        """How many touches worked and how many ended in a signal, once all have ended."""
        while self._channel.recv_ready():
            self._take()
        for step in self._steps():
            if step.get("step") == "outcome":
                return int(step["touched"]), int(step["signalled"])
        return None

    def _say(self, line: str) -> None:
        try:
            self._channel.sendall(f"{line}\n".encode())
        except OSError as error:
            raise ConnectionLostError(f"the crowd is gone: {error}") from error

    def _until(self, name: str, deadline: Deadline) -> dict[str, Any]:
        while True:
            steps = {str(step.get("step")): step for step in self._steps()}
            if name in steps:
                return steps[name]
            if "failed" in steps:
                raise HostfaultError(f"the crowd could not prepare: {steps['failed']}")
            deadline.saw(self._text[-200:].decode(errors="replace"))
            deadline.check()
            self._channel.settimeout(max(0.001, min(1.0, deadline.left())))
            self._take()

    def _take(self) -> None:
        try:
            data = self._channel.recv(65536)
        except TimeoutError:
            return
        except OSError as error:
            raise ConnectionLostError(f"the crowd is gone: {error}") from error
        if not data:
            said = self._text[-400:].decode(errors="replace")
            raise HostfaultError(f"the crowd ended too early; it said: {said!r}")
        self._text = (self._text + data)[:LIMIT]

    def _steps(self) -> list[dict[str, Any]]:
        return parse(self._text.decode(errors="replace"))


def start(guest: Shell, path: str, length: int, tasks: int, policy: str, *, move: bool) -> Crowd:
    """Start a crowd in the guest; see images/probe/crowd.c for its options."""
    command = f"/bin/crowd --file {path} --length {length} --tasks {tasks} --policy {policy}"
    return Crowd(
        guest.open(command + " --move" * move, Deadline(20.0, "the crowd to start")),
    )


def parse(text: str) -> list[dict[str, Any]]:
    """The steps in what a crowd said; a line that is not complete yet is left out."""
    steps = []
    for line in text.splitlines():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if isinstance(step, dict):
            steps.append(step)
    return steps


def _task(step: dict[str, Any]) -> Task:
    page = step.get("page")
    return Task(
        number=int(step["number"]),
        pid=int(step["pid"]),
        page=None if page is None else int(page),
        address=int(step.get("address", "0"), 16),
    )
