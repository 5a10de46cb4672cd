"""The talk with the crowd (images/probe/crowd.c): many guest tasks, some of which touch pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ProtocolError
from hostfault.remote.channel import Channel
from hostfault.remote.shell import Shell


@dataclass(frozen=True)
class Task:
    """One guest task, as the crowd told it."""

    number: int
    pid: int
    page: int | None  # of the file; None: it is busy and touches nothing
    address: int  # guest virtual address of that page


@dataclass(frozen=True)
class ArmedCrowd:
    """What has to be known to tell the tasks apart from outside."""

    rip: int  # address of the touching instruction
    mark: int  # what r15 holds in user space: mark + the task's number
    tasks: tuple[Task, ...]


class Crowd:
    """A crowd that runs in the guest."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def mapped(self, deadline: Deadline) -> None:
        """Wait until the whole file is mapped."""
        self._channel.wait_for("mapped", deadline)

    def arm(self, pages: Sequence[int], deadline: Deadline) -> ArmedCrowd:
        """Say which pages to touch; wait until every toucher has done so once."""
        self._channel.say(f"pages {' '.join(map(str, pages))}")
        armed = self._channel.wait_for("armed", deadline)
        tasks = tuple(_task(step) for step in self._channel.steps() if step.get("step") == "task")
        touched = [task.page for task in tasks if task.page is not None]
        if touched != list(pages):
            raise ProtocolError(f"the crowd was told to touch {list(pages)}, and says {touched}")
        return ArmedCrowd(int(armed["rip"], 16), int(armed["mark"], 16), tasks)

    def go(self) -> None:
        """Give the word."""
        self._channel.say("go")

    def finished(self) -> tuple[int, int] | None:
        """How many touches worked and how many ended in a signal, once all have ended."""
        self._channel.drain()
        for step in self._channel.steps():
            if step.get("step") == "outcome":
                return int(step["touched"]), int(step["signalled"])
        return None


def start(guest: Shell, path: str, length: int, tasks: int, policy: str, *, move: bool) -> Crowd:
    """Start a crowd in the guest; see images/probe/crowd.c for its options."""
    command = f"/bin/crowd --file {path} --length {length} --tasks {tasks} --policy {policy}"
    stream = guest.open(command + " --move" * move, Deadline(20.0, "the crowd to start"))
    return Crowd(Channel("crowd", stream))


def _task(step: dict[str, Any]) -> Task:
    page = step.get("page")
    return Task(
        number=int(step["number"]),
        pid=int(step["pid"]),
        page=None if page is None else int(page),
        address=int(step.get("address", "0"), 16),
    )
