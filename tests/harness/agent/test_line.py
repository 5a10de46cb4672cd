"""The line into a machine in Bochs, both ends of it, with pipes where the machine would be."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hostfault.agent.line import (
    AGENT,
    BEGINNING,
    CLOSE,
    DATA,
    LONGEST,
    OPEN,
    QMP,
    FarEnd,
    Frames,
    frame,
    frames_of,
)
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError
from hostfault.remote.forward import forwarded
from hostfault.remote.line import HALF, MachineLine, line

BANNER = b"=====\n  Bochs x86 Emulator 3.0\n=====\n"


def soon(what: str = "the line") -> Deadline:
    return Deadline(5.0, what)


def test_a_stream_comes_apart_into_its_frames_wherever_it_is_cut() -> None:
    whole = frame(OPEN, 3, b"\x11\x5c") + frames_of(3, b"x" * (LONGEST + 1)) + frame(CLOSE, 3)
    frames = Frames()
    found = [each for at in range(len(whole)) for each in frames.feed(whole[at : at + 1])]
    assert found == [
        (OPEN, 3, b"\x11\x5c"),
        (DATA, 3, b"x" * LONGEST),
        (DATA, 3, b"x"),
        (CLOSE, 3, b""),
    ]


@pytest.mark.parametrize("words", [b'{"id": 1}\n', b"\x02\x00\xff\xff"])
def test_what_is_no_frame_is_an_error(words: bytes) -> None:
    with pytest.raises(ValueError, match="this is no frame"):
        list(Frames().feed(words))


class Machine:
    """What is at the far end of a line: pipes in place of a serial port and of Bochs."""

    def __init__(self, stack: ExitStack) -> None:
        self.to_machine = os.pipe()
        self.from_machine = os.pipe()
        self.agent, theirs = socket.socketpair()
        stack.enter_context(self.agent)
        self.qmp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.end = FarEnd(self.to_machine[0], self.from_machine[1], theirs, self.qmp)
        self.thread = threading.Thread(target=self.end.serve, daemon=True)

    def say(self, words: bytes) -> None:
        os.write(self.from_machine[1], words)

    def begin(self) -> None:
        """As the preloaded library and the line's program do it."""
        self.say(BANNER + BEGINNING)
        self.say(frame(OPEN, AGENT))
        self.thread.start()


@contextmanager
def machine_and_line(*, fork: bool = False) -> Iterator[tuple[Machine, MachineLine]]:
    with ExitStack() as stack:
        machine = Machine(stack)
        near = line(machine.from_machine[0], machine.to_machine[1], fork=fork)
        yield machine, stack.enter_context(near)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A port of 127.0.0.1 where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(5.0)
        yield found


def test_what_bochs_prints_before_the_machine_runs_is_nobodys_word() -> None:
    with machine_and_line() as (machine, near):
        machine.say(BANNER)
        with pytest.raises(DeadlineError, match=r"waited .* for the machine"):
            near.wait_running(Deadline(0.3, "the machine"))
        machine.begin()
        near.wait_running(soon())
        near.wait_listening(soon())


def test_the_agent_is_spoken_to_both_ways() -> None:
    with machine_and_line() as (machine, near):
        machine.begin()
        near.agent.sendall(b"question\n")
        assert machine.agent.recv(100) == b"question\n"
        machine.agent.sendall(b"y" * 100_000 + b"\n")
        heard = b""
        near.agent.settimeout(5.0)
        while not heard.endswith(b"\n"):
            heard += near.agent.recv(1 << 16)
        assert heard == b"y" * 100_000 + b"\n"


def test_a_qemu_that_connects_in_the_machine_is_spoken_to_until_it_goes() -> None:
    with machine_and_line() as (machine, near):
        machine.begin()
        near.qmp.settimeout(5.0)
        with socket.create_connection(machine.qmp.getsockname()) as qemu:
            qemu.sendall(b'{"QMP": {}}')
            assert near.qmp.recv(100) == b'{"QMP": {}}'
            near.qmp.sendall(b"command")
            assert qemu.recv(100) == b"command"
            with socket.create_connection(machine.qmp.getsockname()) as second:
                assert second.recv(1) == b"", "one at a time"
            assert not near.qmp_closed.is_set()
        assert near.qmp_closed.wait(5.0)


def test_a_port_of_the_machine_is_reached_through_a_unix_socket(
    listener: socket.socket, tmp_path: Path
) -> None:
    port = listener.getsockname()[1]
    with machine_and_line() as (machine, near):
        machine.begin()
        with (
            forwarded(tmp_path / "s", lambda: near.open(port)),
            socket.socket(socket.AF_UNIX) as ours,
        ):
            ours.settimeout(5.0)
            ours.connect(str(tmp_path / "s"))
            peer, _ = listener.accept()
            with peer:
                ours.sendall(b"hello")
                assert peer.recv(10) == b"hello"
                peer.sendall(b"QMP")
                assert ours.recv(10) == b"QMP"
            assert ours.recv(10) == b"", "the machine's end was closed"


def test_a_port_where_nobody_listens_hangs_up(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    with machine_and_line() as (machine, near):
        machine.begin()
        assert near.open(port).recv(1) == b""


def test_a_fork_takes_other_channels_than_its_boot(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    numbers = []
    for fork in (False, True):
        with machine_and_line(fork=fork) as (machine, near):
            stream = near.open(port)
            frames = Frames()
            ((_, number, _),) = frames.feed(os.read(machine.to_machine[0], 100))
            numbers.append(number)
            stream.close()
    boot, fork = numbers
    assert QMP < boot < HALF <= fork < 2 * HALF


def test_a_line_that_carries_too_much_says_so() -> None:
    with machine_and_line() as (_, near):
        streams = [near.open(1) for _ in range(HALF - 2)]
        with pytest.raises(ConnectionLostError, match=f"carries {HALF - 2} streams already"):
            near.open(1)
        for each in streams:
            each.close()


@pytest.mark.parametrize(
    ("words", "why"), [(b"Oops", "this is no frame"), (b"", "Bochs has closed it")]
)
def test_a_line_that_is_gone_ends_every_stream_and_says_why(words: bytes, why: str) -> None:
    with machine_and_line() as (machine, near):
        machine.say(BEGINNING + words)
        os.close(machine.from_machine[1])
        near.agent.settimeout(5.0)
        assert near.agent.recv(1) == b""
        with pytest.raises(ConnectionLostError, match=why):
            near.wait_listening(soon())
        with pytest.raises(ConnectionLostError, match=why):
            near.open(1)
