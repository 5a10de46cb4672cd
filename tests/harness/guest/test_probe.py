"""The talk with programs in the guest, which may say anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from hostfault.guest.probe import parse
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError
from hostfault.remote.channel import LIMIT, Channel, steps


@pytest.fixture
def ends() -> Iterator[tuple[Channel, socket.socket]]:
    """A talk, and the program's end of it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel("probe", cast("Any", ours)), theirs


def soon() -> Deadline:
    return Deadline(0.3, "the probe to be armed")


def test_the_first_step_of_a_name_counts(ends: tuple[Channel, socket.socket]) -> None:
    talk, program = ends
    program.sendall(b'{"step": "armed", "rip": 1}\n{"step": "armed", "rip": 2}\n')
    assert talk.wait_for("armed", soon())["rip"] == 1


def test_a_step_that_comes_in_pieces_counts_when_it_is_whole(
    ends: tuple[Channel, socket.socket],
) -> None:
    talk, program = ends
    program.sendall(b'{"step": "ar')
    with pytest.raises(DeadlineError, match=r'the probe to be armed; last saw: {"step": "ar$'):
        talk.wait_for("armed", soon())
    program.sendall(b'med"}')
    assert talk.wait_for("armed", soon()) == {"step": "armed"}


def test_a_program_that_failed_says_why(ends: tuple[Channel, socket.socket]) -> None:
    talk, program = ends
    program.sendall(b'{"step": "failed", "call": "mmap", "errno": 12}\n')
    with pytest.raises(HostfaultError, match=r"the probe could not prepare: .*'mmap'"):
        talk.wait_for("armed", soon())


def test_a_program_that_ends_says_its_last_words(ends: tuple[Channel, socket.socket]) -> None:
    talk, program = ends
    program.sendall(b"sh: /bin/probe: not found\n")
    program.close()
    with pytest.raises(HostfaultError, match="ended before it was armed; it said: 'sh: /bin"):
        talk.wait_for("armed", soon())


def test_a_program_that_is_gone_is_a_lost_connection(ends: tuple[Channel, socket.socket]) -> None:
    talk, program = ends
    program.close()
    with pytest.raises(ConnectionLostError, match="the probe is gone"):
        talk.say("go")


def test_what_a_program_says_is_bounded(ends: tuple[Channel, socket.socket]) -> None:
    talk, program = ends
    for _ in range(LIMIT // 65536 + 2):
        program.sendall(b"a" * 65536)
        talk.listen(1.0)
    assert len(talk.text) == LIMIT


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '"armed"', "[" * 100_000, "9" * 5000, "\0", "NaN"], ids=range(8)
)
def test_a_line_that_is_no_step_is_left_out(line: str) -> None:
    assert steps(f'{line}\n{{"step": "armed"}}\n') == [{"step": "armed"}]


@pytest.mark.parametrize("number", ['"rip"', "null", "[]", "{}", "Infinity", "NaN", '""'])
def test_a_number_that_is_none_is_zero(number: str) -> None:
    assert parse(f'{{"step": "armed", "rip": {number}}}\n').rip == 0
    outcome = parse(f'{{"step": "outcome", "kind": "value", "value": {number}}}\n').outcome
    assert outcome is not None
    assert outcome.value == 0
