"""SSH with a machine that misbehaves: whatever it does not say, the wait for it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hostfault.plumbing.cache import Cache
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError
from hostfault.plumbing.ssh_keys import Identity, identity
from hostfault.remote.ssh import OUTPUT_LIMIT, SshShell, connect

PATIENCE = 0.5  # seconds, of a caller whom nobody answers
Behaviour = Callable[[paramiko.Channel, threading.Event], None]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return identity(Cache(tmp_path_factory.mktemp("cache")))


class Transport(paramiko.Transport):
    """Tells its machine when something has left for the client."""

    def _send_user_message(self, data: paramiko.Message) -> None:
        super()._send_user_message(data)
        self.server_object.replied.set()


class Machine(paramiko.ServerInterface):
    """An SSH server that lets everyone in, and then does what the test says."""

    def __init__(self, behaviour: Behaviour, *, answers_exec: bool) -> None:
        self.behaviour = behaviour
        self.answers_exec = answers_exec
        self.replied = threading.Event()  # to the request to start the command
        self.over = threading.Event()

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if not self.answers_exec:
            self.over.wait(30.0)
        self.replied.clear()
        threading.Thread(target=self._behave, args=(channel,), daemon=True).start()
        return True

    def _behave(self, channel: paramiko.Channel) -> None:
        self.replied.wait(30.0)  # the reply leaves after check_channel_exec_request() has returned
        self.behaviour(channel, self.over)


@pytest.fixture
def machine_that(keys: Identity, tmp_path: Path) -> Iterator[Callable[..., SshShell]]:
    """Starts a machine that behaves so, and logs in."""
    machines: list[Machine] = []
    transports: list[paramiko.Transport] = []
    shells: list[SshShell] = []

    def start(behaviour: Behaviour, *, answers_exec: bool = True) -> SshShell:
        machine = Machine(behaviour, answers_exec=answers_exec)
        machines.append(machine)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "ssh"))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            listener.close()
            transport = Transport(peer)
            transports.append(transport)
            transport.add_server_key(host_key(keys))
            with suppress(paramiko.SSHException):  # the client hangs up before they have agreed
                transport.start_server(server=machine)

        threading.Thread(target=serve, daemon=True).start()
        shell = connect("guest", tmp_path / "ssh", keys, Deadline(20.0, "the test's own machine"))
        shells.append(shell)
        return shell

    yield start
    for machine in machines:
        machine.over.set()
    for each in [*shells, *transports]:
        each.close()


def host_key(keys: Identity) -> paramiko.PKey:
    """Dropbear's file in a form that paramiko reads: its end is the private and public halves."""
    private = Ed25519PrivateKey.from_private_bytes(keys.host_key.read_bytes()[-64:-32])
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path = keys.host_key.with_suffix(".pem")
    path.write_bytes(pem)
    return paramiko.Ed25519Key(filename=str(path))


def lost_within(shell: SshShell, seconds: float) -> str:
    begun = now()
    with pytest.raises(ConnectionLostError) as caught:
        shell.run("true", Deadline(PATIENCE, "the guest to answer"))
    assert now() - begun < seconds
    return str(caught.value)


def says(*parts: bytes, code: int = 0) -> Behaviour:
    def behave(channel: paramiko.Channel, _over: threading.Event) -> None:
        for part in parts:
            channel.sendall(part)
        channel.send_exit_status(code)
        channel.close()

    return behave


def drips(channel: paramiko.Channel, over: threading.Event) -> None:
    with suppress(OSError):
        while not over.wait(0.05):
            channel.sendall(b".")


def hangs(_channel: paramiko.Channel, over: threading.Event) -> None:
    over.wait(30.0)


def ends_its_output_and_nothing_else(channel: paramiko.Channel, over: threading.Event) -> None:
    channel.shutdown_write()
    over.wait(30.0)


def hangs_up(channel: paramiko.Channel, _over: threading.Event) -> None:
    channel.close()


def test_a_command_comes_back_with_its_text_and_its_code(
    machine_that: Callable[..., SshShell],
) -> None:
    shell = machine_that(says(b"one ", b"two", code=3))
    answer = shell.run("x", Deadline(20.0, "an answer"))
    assert (answer.code, answer.text) == (3, "one two")


def test_a_command_that_must_succeed_tells_what_it_said(
    machine_that: Callable[..., SshShell],
) -> None:
    shell = machine_that(says(b"no such file\n", code=1))
    with pytest.raises(HostfaultError, match=r"'x' failed with 1: no such file$"):
        shell.check("x", Deadline(20.0, "an answer"))


def test_of_endless_output_only_the_start_is_kept(machine_that: Callable[..., SshShell]) -> None:
    shell = machine_that(says(*[b"a" * 65536] * 20))
    text = shell.run("x", Deadline(20.0, "an answer")).text
    assert len(text) == OUTPUT_LIMIT


@pytest.mark.parametrize(
    "behaviour", [hangs, drips, ends_its_output_and_nothing_else], ids=lambda each: each.__name__
)
def test_a_command_that_does_not_end_is_given_up_at_the_deadline(
    machine_that: Callable[..., SshShell], behaviour: Behaviour
) -> None:
    words = lost_within(machine_that(behaviour), 20 * PATIENCE)
    assert words.startswith("guest: no answer to 'true': waited ")


def test_a_machine_that_does_not_even_start_the_command_is_given_up(
    machine_that: Callable[..., SshShell],
) -> None:
    words = lost_within(machine_that(hangs, answers_exec=False), 20 * PATIENCE)
    assert words.startswith("guest: no answer to 'true': waited ")


def test_a_command_that_ends_without_a_code_has_not_answered(
    machine_that: Callable[..., SshShell],
) -> None:
    assert lost_within(machine_that(hangs_up), 20 * PATIENCE).endswith(
        "it hung up without an exit code"
    )


def test_a_connection_that_was_closed_is_lost(machine_that: Callable[..., SshShell]) -> None:
    shell = machine_that(says())
    shell.close()
    with pytest.raises(ConnectionLostError, match="no answer to 'x'"):
        shell.open("x", Deadline(PATIENCE, "an answer"))


def test_a_machine_that_never_greets_is_a_wait_that_ended(keys: Identity, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "ssh"))
        listener.listen()
        with pytest.raises(DeadlineError, match="for SSH of nobody; last saw: "):
            connect("guest", tmp_path / "ssh", keys, Deadline(PATIENCE, "SSH of nobody"))
