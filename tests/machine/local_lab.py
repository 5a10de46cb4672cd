"""A pytest plugin for the run inside an emulated host: its guest image is built already.

Everything else of ``--host local`` is as on any KVM host: the probe of /dev/kvm, the choice of
the host, QEMU, the agent, the back-end, the guest.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.backing import Backing
from hostfault.case.model import GuestImage, Kernel
from hostfault.case.settings import Settings
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.ssh_keys import Identity
from hostfault.run.lab import Lab

HERE = Path(__file__).parents[3]  # what the host was given, or a copy of it


class PreparedLab(Lab):
    """A lab that has no compiler and needs none."""

    _guest_kernel = Kernel("prepared", "prepared", HERE / "guest-kernel", HERE, packaged=True)
    _identity = Identity(
        client_key=HERE / "client_key.openssh",
        client_public="",
        host_key=Path(),
        host_public=(HERE / "host_public").read_text().strip(),
        client_key_dropbear=Path(),
        known_hosts=Path(),
    )

    def _guest_image(self, _backing: Backing) -> GuestImage:
        return GuestImage("prepared", HERE / "guest-initramfs", "")


@pytest.hookimpl(tryfirst=True)
def pytest_hostfault_lab(settings: Settings) -> Lab:
    """The lab of this run."""
    return PreparedLab(settings, Cache(HERE / "cache"))
