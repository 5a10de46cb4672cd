"""A BAR of a PCI device whose memory is a host file: QEMU's ivshmem-plain.

So it is with every device that gives a guest host memory by a BAR. KVM has a memslot for it, as
for plain memory. (QEMU's docs/system/devices/ivshmem.rst and docs/specs/ivshmem-spec.rst.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostfault.backing.base import MEMFD, Ability, GuestView, Python, QemuOptions
from hostfault.backing.region import make_page, proven_frame, view_of
from hostfault.backing.store import PART, Store, option_of
from hostfault.case.model import Page, Qemu
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError
from hostfault.plumbing.process import run
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

DEVICE = "ivshmem-plain"
SLOT = 0x10  # of PCI bus 0
IN_GUEST = f"/sys/bus/pci/devices/0000:00:{SLOT:02x}.0"
BAR = 2  # the shared memory
_START_PATIENCE = 30.0  # seconds for a QEMU that only prints something


@dataclass(frozen=True)
class Ivshmem:
    """A page of a device's memory, which the guest's task maps by its file in /sys."""

    name: str
    store: Store
    guest_modules: tuple[str, ...] = ()
    guest_programs: tuple[str, ...] = ()
    guest_options: str = ""

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the file."""
        return self.store.abilities

    @property
    def logs(self) -> Mapping[str, str]:
        """None."""
        return {}

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """A QEMU that was built with the device."""
        line = [*qemu.argv, "-device", "help"]
        if f'"{DEVICE}"' not in run(line, what="QEMU", timeout=_START_PATIENCE, env=environment):
            raise MissingCapabilityError(
                "ivshmem",
                f"QEMU {qemu.version} ({qemu.argv[0]}) was built without {DEVICE}: "
                "use --qemu image",
            )

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Make what the file lies on."""
        self.store.start(agent)

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """The file and the device, in a slot that the guest's side knows."""
        device = (
            *("-object", self.store.object(directory, PART) + option_of(on_unbacked)),
            *("-device", f"{DEVICE},memdev={PART},addr={SLOT:#x}"),
        )
        return QemuOptions(MEMFD.memory, device)

    def check_alive(self, agent: Agent) -> None:
        """There is nothing that could end."""

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Let the device answer to its BAR, and check that this is as large as the file."""
        guest.check(f"echo 1 >{IN_GUEST}/enable", deadline)
        said = guest.check(f"sed -n {BAR + 1}p {IN_GUEST}/resource", deadline)
        begin, end = (int(word, 16) for word in said.split()[:2])
        if end - begin + 1 != self.store.size:
            raise HostfaultError(f"the guest's BAR {BAR} is not the file's: {said!r}")
        self.store.take(agent)

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """At the file's beginning."""
        return make_page(agent, self.store, 0, fill)

    def view(self) -> GuestView:
        """The BAR as a file (Documentation/PCI/sysfs-pci.rst)."""
        return view_of(self.store, f"{IN_GUEST}/resource{BAR}", 0)

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """Where QEMU says that the BAR is (HMP ``info pci``)."""
        address = find_bar(recorder.monitor("info pci"), SLOT, BAR) + page.offset
        return proven_frame(agent, recorder, self.store, address, page.offset)

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """None."""
        return {}


def find_bar(info_pci: str, slot: int, bar: int) -> int:
    """The guest-physical address of a memory BAR, from QEMU's ``info pci``.

    Raises :class:`HostfaultError` if it has none.
    """
    for device in re.split(r"(?m)^\s*(?=Bus)", info_pci):
        if re.match(rf"Bus\s+0, device\s+{slot}, function 0:", device):
            found = re.search(rf"BAR{bar}: .*memory at (0x[0-9a-f]+) ", device)
            if found:
                return int(found[1], 16)
    raise HostfaultError(f"QEMU does not say where BAR {bar} of slot {slot:#x} is:\n{info_pci}")
