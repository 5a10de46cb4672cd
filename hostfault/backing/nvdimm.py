"""An NVDIMM whose memory is a host file, on which the guest has a file system mounted for DAX.

QEMU's has no labels, so to Linux it is one raw namespace, which has no struct pages and cannot be
mapped by DAX. The guest lays a "pfn" device over it, as ``ndctl create-namespace -m fsdax`` does,
by sysfs: Documentation/driver-api/nvdimm/nvdimm.rst. (QEMU's docs/nvdimm.txt.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hostfault.backing.base import MEMFD, QemuOptions
from hostfault.backing.store import PART, option_of
from hostfault.backing.virtio_pmem import MOST, VirtioPmem
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.agent import Agent
from hostfault.remote.shell import Shell

DEVICES, DRIVER = "/sys/bus/nd/devices", "/sys/bus/nd/drivers/nd_pmem"
NAMESPACE, PFN = "namespace0.0", "pfn0.0"  # the only ones
ALIGNMENT = 2 << 20  # bytes; the smallest that x86 has for struct pages of a device


def claiming(device: str, driver: str) -> tuple[str, ...]:
    """Commands that lay a device of libnvdimm's over the namespace and bind it to its driver.

    With the struct pages in ordinary memory, so that all of the host file is data.
    """
    return (
        f"echo ram >{DEVICES}/{device}/mode",
        f"echo {ALIGNMENT} >{DEVICES}/{device}/align",
        f"cat /proc/sys/kernel/random/uuid >{DEVICES}/{device}/uuid",
        f"echo {NAMESPACE} >{DEVICES}/{device}/namespace",
        f"echo {device} >{driver}/bind",
    )


@dataclass(frozen=True)
class Nvdimm(VirtioPmem):
    """As virtio-pmem, but for the device; the guest finds it by ACPI."""

    drivers: tuple[str, ...] = ("nfit", "nd_pmem")
    address: re.Pattern[str] = re.compile(r"\[nvdimm\].*\n\s+addr: (0x[0-9a-f]+)")

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """The file and the device."""
        device = (
            *("-m", f"maxmem={MOST},slots=1"),
            *("-object", self.store.object(directory, PART) + option_of(on_unbacked)),
            *("-device", f"nvdimm,memdev={PART}"),
        )
        return QemuOptions(MEMFD.memory, device, (*MEMFD.machine, "nvdimm=on"))

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Give the namespace its struct pages first."""
        unbind = f"echo {NAMESPACE} >{DRIVER}/unbind"
        guest.check(" && ".join((unbind, *claiming(PFN, DRIVER))), deadline)
        super().mount(agent, guest, deadline)
