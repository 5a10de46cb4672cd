"""An NVDIMM whose memory the guest's tasks map as a device: no file system of the guest's is in it.

The guest lays a "dax" device over the raw namespace, as ``ndctl create-namespace -m devdax`` does,
by sysfs, and its driver makes a character device of that.
(Documentation/driver-api/nvdimm/nvdimm.rst, Documentation/ABI/testing/sysfs-bus-dax.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hostfault.backing.base import NUMBER, GuestView
from hostfault.backing.nvdimm import ALIGNMENT, DEVICES, NAMESPACE, Nvdimm, claiming
from hostfault.backing.region import make_page
from hostfault.case.model import Page
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent
from hostfault.remote.shell import Shell

DAX = "dax0.0"  # the only one; its device file is called so, too
DRIVER = "/sys/bus/nd/drivers/dax_pmem"
DATA = ALIGNMENT  # bytes from the namespace's beginning to the device's: there its superblock is
_PLACES = f"cat {DEVICES}/{NAMESPACE}/resource {DEVICES}/{DAX}/resource && test -c /dev/{DAX}"


@dataclass(frozen=True)
class DevDax(Nvdimm):
    """As the NVDIMM with a file system, but for what the guest makes of it."""

    drivers: tuple[str, ...] = ("nfit", "dax_pmem", "device_dax")

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """There is no file system."""
        return self.drivers

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Make the device; check where in the namespace it begins."""
        guest.check(" && ".join(claiming(DAX, DRIVER)), deadline)
        namespace, device = (int(word, 16) for word in guest.check(_PLACES, deadline).split())
        if device - namespace != DATA:
            raise HostfaultError(
                f"the guest's {DAX} begins {device - namespace:#x} into the NVDIMM, not {DATA:#x}"
            )
        self.store.take(agent)

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """At the device's beginning."""
        return make_page(agent, self.store, DATA, fill)

    def view(self) -> GuestView:
        """The device, of which a task must map whole huge pages; it touches the same ones of it."""
        return GuestView(f"/dev/{DAX}", 0, ALIGNMENT, NUMBER * self.store.page_size)
