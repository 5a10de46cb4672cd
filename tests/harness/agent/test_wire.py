"""The agent's end of a wire to a guest: what comes is sent back."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest

from hostfault.agent import wire
from hostfault.agent.server import AgentServer
from hostfault.agent.wire import Echo, make_tap


def test_every_datagram_is_sent_back_to_its_sender() -> None:
    with (
        closing(Echo("127.0.0.1", 0)) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for sender, data in ((one, b"\x88"), (other, b""), (other, b"\0" * 1400), (one, b"again")):
            sender.settimeout(10.0)
            sender.sendto(data, ("127.0.0.1", echo.port))
            assert sender.recv(2000) == data


def test_an_echo_that_is_closed_gives_its_port_back() -> None:
    with closing(Echo("127.0.0.1", 0)) as first, pytest.raises(OSError, match="in use"):
        Echo("127.0.0.1", first.port)
    Echo("127.0.0.1", first.port).close()


def test_a_kernel_without_its_devices_has_no_wire(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wire, "NEEDED", (tmp_path / "vhost-net",))
    assert not make_tap()


def test_only_a_machine_of_our_own_gets_a_wire(tmp_path: Path) -> None:
    with (
        closing(AgentServer(tmp_path / "agent")) as agent,
        pytest.raises(PermissionError, match="not to be hurt"),
    ):
        agent.make_wire()
