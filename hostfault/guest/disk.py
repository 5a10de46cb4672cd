"""A disk that a guest is given while it runs, so that a device touches its memory.

QEMU reads it by preadv(2) straight into guest memory, as it does with any raw file.
"""

from __future__ import annotations

from hostfault.guest.hotplug import wait_for
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

FILE = "disk"  # in the agent's directory
PAGE = 4096  # bytes
DEVICE = "/dev/vda"  # in the guest: its only disk


def plug(agent: Agent, recorder: Recorder, guest: Shell, deadline: Deadline) -> None:
    """Give the guest a disk in which page N is full of the byte N; it is there afterwards.

    (QAPI block-core.json and qdev.json.) Raises :class:`HostfaultError` with QEMU's words.
    """
    agent.make_file(FILE, list(range(256)), PAGE)
    path = f"{agent.hello()['dir']}/{FILE}"
    file = {"driver": "file", "filename": path, "node-name": "disk", "read-only": True}
    recorder.execute("blockdev-add", file)
    device = {"driver": "virtio-blk-pci", "drive": "disk", "id": "disk"}
    recorder.execute("device_add", device)
    wait_for(guest, DEVICE, deadline)
