"""A pytest plugin for the run inside an emulated host: its guest image is built already.

Everything else of ``--host local`` is as on any KVM host: the probe of /dev/kvm, the choice of
the host, QEMU, the agent, the back-end, the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hostfault.case.model import GuestImage, Kernel
from hostfault.plugin.options import Settings
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.ssh_keys import Identity
from hostfault.run.lab import Lab

HERE = Path("/run/hostfault")


class PreparedLab(Lab):
    """A lab that has no compiler and needs none."""

    _guest_kernel = Kernel("prepared", "prepared", HERE / "guest-kernel", HERE, packaged=True)
    _guest_image = GuestImage("prepared", HERE / "guest-initramfs", "")
    _identity = Identity(
        HERE / "client_key", "", Path(), (HERE / "host_public").read_text().strip()
    )


@pytest.hookimpl(tryfirst=True)
def pytest_hostfault_lab(settings: Settings, say: Callable[[str], None]) -> Lab:
    """The lab of this run."""
    return PreparedLab(settings, say, Cache(HERE / "cache"))
