"""A guest finds a device that it was given while it runs."""

from __future__ import annotations

from hostfault.plumbing.deadline import Deadline
from hostfault.remote.shell import Shell

PATIENCE = 60.0  # seconds that it may take; a busy machine's guest has needed more than twenty


def wait_for(guest: Shell, path: str, deadline: Deadline) -> None:
    """Wait until the guest's kernel has made a path of the device's.

    A rescan finds one whose announcement was missed (Documentation/ABI/testing/sysfs-bus-pci).
    Raises :class:`~hostfault.plumbing.errors.ConnectionLostError` when the time is over.
    """
    rescan = "echo 1 >/sys/bus/pci/rescan; usleep 20000"
    guest.check(f"until [ -e {path} ]; do {rescan}; done", deadline)
