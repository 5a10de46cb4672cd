"""Who is killed inside the emulated host, shown with an agent of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostfault.host.local import local_agent
from hostfault.nightly.inside import NAME, Order, send, was_there
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError
from hostfault.remote.agent import Agent

PATH = {"PATH": os.defpath}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with local_agent(tmp_path / "run", tmp_path) as agent:
        yield agent


def order(kind: str, after: float = 0.0) -> Order:
    return Order(kind, 1, after, "done")


def test_the_guests_qemu_is_killed_and_its_neighbour_is_not(agent: Agent) -> None:
    agent.spawn("guest", ["sh", "-c", "sleep 60; :", "qemu-system-x86_64"], PATH)
    agent.spawn("neighbour", ["sleep", "60"], PATH)
    asked = order("guest-qemu")
    send(agent, asked)
    end = Deadline(10.0, "QEMU to be killed")
    assert poll(end, lambda: agent.ended("guest")) == -9
    poll(end, lambda: True if was_there(agent, asked) else None)
    assert agent.ended("neighbour") is None


def test_the_agent_is_killed_and_that_counts(agent: Agent) -> None:
    asked = order("agent")
    send(agent, asked)

    def lost() -> bool | None:
        try:
            agent.hello()
        except ConnectionLostError:
            return True
        return None

    poll(Deadline(10.0, "the agent to be gone"), lost)
    assert was_there(agent, asked)
    assert not was_there(agent, order("guest-qemu")), "an agent lost otherwise is no such kill"


def test_a_case_that_ended_first_does_not_count(agent: Agent) -> None:
    asked = order("agent", after=60.0)
    send(agent, asked)
    assert not was_there(agent, asked)
    agent.kill(NAME)


def test_an_order_survives_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Order("guest-qemu", 2, 0.35, "/somewhere/done")
    for name, value in given.to_environment().items():
        monkeypatch.setenv(name, value)
    assert Order.from_environment() == given
