"""A network card that a guest is given while it runs, whose queues the host's kernel serves.

That is vhost-net: a worker of the host's kernel copies from and to guest memory, by QEMU's
addresses of it. On the other end of the wire the agent sends back what it gets.
"""

from __future__ import annotations

from hostfault.agent.wire import DEVICE, PREFIX
from hostfault.guest.hotplug import wait_for
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.agent import Agent, require_expendable
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

INTERFACE = "eth1"  # in the guest: its second
ADDRESS = "192.0.2.2"  # in the network of the agent's
_UP = f"ip addr add {ADDRESS}/{PREFIX} dev {INTERFACE} && ip link set {INTERFACE} up"


def plug(agent: Agent, recorder: Recorder, guest: Shell, deadline: Deadline) -> None:
    """Give the guest the card; it is there, and has its address, afterwards.

    (QAPI net.json and qdev.json.) Raises :class:`HostfaultError` with QEMU's words.
    """
    require_expendable(agent, "it makes a network of its own")
    if not agent.make_wire():
        raise MissingCapabilityError(
            "vhost-net", "the host's kernel needs CONFIG_TUN and CONFIG_VHOST_NET"
        )
    tap = {"type": "tap", "id": "wire", "ifname": DEVICE, "script": "no", "downscript": "no"}
    recorder.execute("netdev_add", {**tap, "vhost": True})
    card = {"driver": "virtio-net-pci", "netdev": "wire", "id": "card", "romfile": ""}
    recorder.execute("device_add", {**card, "modern-pio-notify": True})
    wait_for(guest, f"/sys/class/net/{INTERFACE}", deadline)
    guest.check(_UP, deadline)
