"""Plain guest memory: a part of it is a host file, the rest nobody's business.

The part is a memory backend of its own (QEMU's "-numa node,memdev="), so to KVM it is an ordinary
memslot, and to the guest ordinary memory. It is kept from the guest's kernel ("memmap=" of its
Documentation/admin-guide/kernel-parameters.txt), so that only the probe touches it, through
/dev/mem: whatever becomes of the file, no other page of the guest goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostfault.backing.base import (
    GUEST_MEMORY,
    Ability,
    GuestView,
    Python,
    QemuOptions,
)
from hostfault.backing.region import make_page, proven_frame, view_of
from hostfault.backing.store import PART, Store, option_of
from hostfault.case.model import Page, Qemu
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

SIZE = GUEST_MEMORY << 20  # bytes
START = 160 << 20  # of the part: above the guest's kernel, below its initramfs and firmware tables


@dataclass(frozen=True)
class Ram:
    """A page of guest memory, as in any guest with a memory backend."""

    name: str
    store: Store
    guest_modules: tuple[str, ...] = ()
    guest_programs: tuple[str, ...] = ()

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the file."""
        return self.store.abilities

    @property
    def guest_options(self) -> str:
        """The guest's kernel leaves the part alone, and has one node as far as it knows."""
        return f"memmap={self.store.size >> 10}K${START:#x} numa=off"

    @property
    def logs(self) -> Mapping[str, str]:
        """None."""
        return {}

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """Every QEMU can."""

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Make what the file lies on."""
        self.store.start(agent)

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """The part between two others that are there before the guest runs."""
        end = START + self.store.size
        objects = (
            f"memory-backend-ram,id=below,size={START},prealloc=on",
            self.store.object(directory, PART) + option_of(on_unbacked),
            f"memory-backend-ram,id=above,size={SIZE - end},prealloc=on",
        )
        nodes = (f"node,nodeid={n},memdev={name}" for n, name in enumerate(_PARTS))
        words = [*(("-object", each) for each in objects), *(("-numa", each) for each in nodes)]
        return QemuOptions(tuple(word for pair in words for word in pair), machine=())

    def check_alive(self, agent: Agent) -> None:
        """There is nothing that could end."""

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Check that the guest's kernel leaves the part alone."""
        wanted = f"{START:08x}-{START + self.store.size - 1:08x} : Reserved"
        memory = guest.check("cat /proc/iomem", deadline)
        if wanted not in memory.lower().replace("reserved", "Reserved"):
            raise HostfaultError(f"the guest's kernel does not leave {wanted!r} alone:\n{memory}")
        self.store.take(agent)

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """At the file's beginning."""
        return make_page(agent, self.store, 0, fill)

    def view(self) -> GuestView:
        """By guest-physical addresses."""
        return view_of(self.store, "/dev/mem", START)

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """The page's offset in the file says its guest-physical address."""
        return proven_frame(agent, recorder, self.store, START + page.offset, page.offset)

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """None."""
        return {}


_PARTS = ("below", PART, "above")
