"""A network card that a guest is given while it runs, whose queues the host's kernel serves.

That is vhost-net: a worker of the host's kernel copies from and to guest memory, by QEMU's
addresses of it. On the other end of the wire the agent sends back what it gets.
"""

from __future__ import annotations

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

TAP = "hostfault0"  # as in hostfault/agent/wire.py, like the network of the address
INTERFACE, ADDRESS = "eth1", "192.0.2.2/24"  # in the guest: its second
PATIENCE = 60.0  # seconds for the guest to find it
# A rescan finds a device whose announcement was missed (Documentation/ABI/testing/sysfs-bus-pci).
_WAIT = (
    f"until [ -e /sys/class/net/{INTERFACE} ]; do echo 1 >/sys/bus/pci/rescan; usleep 20000; done; "
    f"ip addr add {ADDRESS} dev {INTERFACE} && ip link set {INTERFACE} up"
)


def plug(agent: Agent, recorder: Recorder, guest: Shell) -> None:
    """Give the guest the card; it is there, and has its address, afterwards.

    (QAPI net.json and qdev.json.) Raises :class:`HostfaultError` with QEMU's words.
    """
    if not agent.may_hurt():
        raise MissingCapabilityError(
            "emulated-host", "it makes a network of its own: use --host emulated"
        )
    if not agent.make_wire():
        raise MissingCapabilityError(
            "vhost-net", "the host's kernel needs CONFIG_TUN and CONFIG_VHOST_NET"
        )
    tap = {"type": "tap", "id": "wire", "ifname": TAP, "script": "no", "downscript": "no"}
    recorder.execute("netdev_add", {**tap, "vhost": True})
    card = {"driver": "virtio-net-pci", "netdev": "wire", "id": "card", "romfile": ""}
    recorder.execute("device_add", {**card, "modern-pio-notify": True})
    guest.check(_WAIT, Deadline(PATIENCE, f"{INTERFACE} in the guest"))
