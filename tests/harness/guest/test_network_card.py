"""A network card that a guest is given, with a pretended host and guest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from hostfault.agent import wire as on_the_host
from hostfault.guest import wire
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import MissingCapabilityError


class Machines:
    """A host, its QEMU and the guest; what they were asked for, in order."""

    def __init__(self, *, ours: bool = True, able: bool = True) -> None:
        self.ours, self.able = ours, able
        self.asked: list[str] = []
        self.arguments: dict[str, Mapping[str, Any]] = {}

    def may_hurt(self) -> bool:
        return self.ours

    def make_wire(self) -> bool:
        self.asked.append("make_wire")
        return self.able

    def execute(self, command: str, arguments: Mapping[str, Any]) -> None:
        self.asked.append(command)
        self.arguments[command] = arguments

    def check(self, command: str, _deadline: object) -> str:
        self.asked.append("guest")
        self.arguments["guest"] = {"command": command}
        return ""


def plug(machines: Machines) -> None:
    all_of_them = cast("Any", machines)
    wire.plug(all_of_them, all_of_them, all_of_them, Deadline(1.0, "nothing"))


def test_a_card_is_served_by_the_hosts_kernel_on_the_agents_tap() -> None:
    machines = Machines()
    plug(machines)
    assert machines.asked == ["make_wire", "netdev_add", "device_add", "guest", "guest"]
    net = machines.arguments["netdev_add"]
    assert (net["ifname"], net["vhost"]) == (on_the_host.DEVICE, True)
    assert machines.arguments["device_add"]["netdev"] == net["id"]
    network = on_the_host.ADDRESS.rpartition(".")[0]
    assert f"{network}." in str(machines.arguments["guest"]["command"])


@pytest.mark.parametrize(
    ("machines", "missing"),
    [(Machines(ours=False), "emulated-host"), (Machines(able=False), "vhost-net")],
)
def test_a_host_that_cannot_have_one_lacks_a_capability(machines: Machines, missing: str) -> None:
    with pytest.raises(MissingCapabilityError, match=missing):
        plug(machines)
    assert "netdev_add" not in machines.asked
