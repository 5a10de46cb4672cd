"""Connections to a guest that the agent carries: the clients are shells of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostfault.host.local import local_agent
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    LaunchError,
)
from hostfault.remote.agent import Agent
from hostfault.remote.carried import SPARES, CarriedShell, Client
from hostfault.remote.channel import Channel

ENVIRONMENT = {"PATH": os.environ["PATH"]}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with local_agent(tmp_path / "run", tmp_path) as agent:
        yield agent


def soon(what: str = "an answer") -> Deadline:
    return Deadline(10.0, what)


def shell(agent: Agent, *argv: str) -> CarriedShell:
    return CarriedShell(agent, Client(argv or ("sh", "-c"), ENVIRONMENT))


def test_a_command_is_run_to_its_end(agent: Agent) -> None:
    answer = shell(agent).run("echo out; echo err >&2; exit 7", soon())
    assert (answer.code, answer.text) == (7, "out\nerr\n")


def test_a_command_that_must_succeed_says_what_it_said(agent: Agent) -> None:
    assert shell(agent).check("echo fine", soon()) == "fine\n"
    with pytest.raises(HostfaultError, match="'false' failed with 1"):
        shell(agent).check("false", soon())


def test_connections_that_were_made_ahead_are_taken_first_and_replaced(agent: Agent) -> None:
    before = shell(agent)
    before.log_in(soon())
    assert len(before.spares) == SPARES
    after = CarriedShell(agent, Client(("false",), ENVIRONMENT), before.spares)
    assert after.check("echo $((6 * 7))", soon()) == "42\n"
    assert len(after.spares) == SPARES - 1
    before.log_in(soon())


def test_where_a_connection_takes_long_fewer_are_made_ahead(agent: Agent) -> None:
    guest = shell(agent)
    guest.log_in(soon(), spares=2)
    assert len(guest.spares) == 2
    guest.check("true", soon())
    guest.log_in(soon(), spares=2)
    assert len(guest.spares) == 2


def test_a_program_is_talked_with(agent: Agent) -> None:
    program = 'echo "{\\"step\\": \\"ready\\"}"; read -r word; echo "{\\"step\\": \\"$word\\"}"'
    channel = Channel("echo", shell(agent).open(program, soon()))
    channel.wait_for("ready", soon())
    channel.say("done")
    assert channel.wait_for("done", soon()) == {"step": "done"}
    assert not channel.listen(5.0), "it has said its last"


def test_a_client_that_gets_no_answer_is_tried_again_until_the_deadline(agent: Agent) -> None:
    nobody = shell(agent, "sh", "-c", "echo connection refused")
    with pytest.raises(DeadlineError, match=r"SSH of nobody; last saw: .*refused"):
        nobody.log_in(Deadline(0.5, "SSH of nobody"))


def test_a_guest_that_is_gone_is_not_waited_for(agent: Agent) -> None:
    def gone() -> None:
        raise LaunchError("the guest's QEMU", ["qemu"], 0, "")

    deadline = Deadline(30.0, "SSH of nobody")
    with pytest.raises(LaunchError):
        shell(agent, "sh", "-c", "echo connection refused").log_in(deadline, gone)
    assert deadline.elapsed() < 15.0


def test_a_connection_that_breaks_is_lost_and_no_answer(agent: Agent) -> None:
    with pytest.raises(ConnectionLostError, match="no answer to 'kill -9"):
        shell(agent).run("kill -9 $$", soon())


def test_a_word_of_the_guests_in_place_of_the_code_is_no_answer(agent: Agent) -> None:
    liar = shell(agent, "sh", "-c", 'eval "$1" | sed -u "s/code-.*/& nonsense/"', "sh")
    with pytest.raises(ConnectionLostError, match="no answer to 'true'"):
        liar.run("true", soon())


def test_output_without_a_newline_at_its_end_is_kept(agent: Agent) -> None:
    assert shell(agent).run("printf half", soon()).text == "half"


def test_a_command_that_never_ends_is_lost_at_the_deadline(agent: Agent) -> None:
    with pytest.raises(ConnectionLostError, match=r"waited 0\.5 s for a sleeper"):
        shell(agent).run("sleep 60", Deadline(0.5, "a sleeper"))
