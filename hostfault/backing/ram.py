"""Plain guest memory: all of it is one file on a tmpfs of the host's.

A range of guest memory is kept from the guest's kernel ("memmap=" of its
Documentation/admin-guide/kernel-parameters.txt), so that only the probe touches it, through
/dev/mem. To KVM it is a part of the guest's ordinary memslot. The rest of the file is allocated
beforehand: a fault must find no other page missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hostfault.backing.base import (
    GUEST_MEMORY,
    NUMBER,
    PAGES,
    QEMU_CHILD,
    Ability,
    GuestView,
    Python,
    QemuOptions,
)
from hostfault.case.model import PAGE_SIZE, Page, Qemu
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

FOLDER = "ram"  # in the agent's directory: the tmpfs
FILE = f"{FOLDER}/memory"
SIZE = GUEST_MEMORY << 20  # bytes
ROOM = 4 << 20  # bytes of the tmpfs beyond that
START = 160 << 20  # of the range: above the guest's kernel, below its initramfs and firmware tables
_TRANSLATION = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(([^)]*)\) is (0x[0-9a-f]+)")


class Ram:
    """A page of guest memory, as in any guest with ``memory-backend-file``."""

    name = "ram"
    abilities = frozenset({Ability.HOST_PAGE, Ability.HOST_NAME, Ability.OWN_FILE_SYSTEM})
    guest_modules: Sequence[str] = ()
    guest_options = f"memmap={PAGES * PAGE_SIZE >> 10}K${START:#x}"
    logs: Mapping[str, str] = {}

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """Every QEMU can."""

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Mount the tmpfs."""
        agent.make_directory(FOLDER)
        if not agent.mount(FOLDER, SIZE + ROOM):
            raise MissingCapabilityError(
                "tmpfs", "the agent may not mount a tmpfs for guest memory: be root"
            )

    def qemu_options(self, directory: str) -> QemuOptions:
        """The file."""
        path = f"mem-path={directory}/{FILE}"
        return QemuOptions(("-object", f"memory-backend-file,id=mem,size={SIZE},share=on,{path}"))

    def check_alive(self, agent: Agent) -> None:
        """There is nothing that could end."""

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Check that the guest's kernel leaves the range alone; allocate everything else."""
        wanted = f"{START:08x}-{START + PAGES * PAGE_SIZE - 1:08x} : Reserved"
        memory = guest.check("cat /proc/iomem", deadline)
        if wanted not in memory.lower().replace("reserved", "Reserved"):
            raise HostfaultError(f"the guest's kernel does not leave {wanted!r} alone:\n{memory}")
        agent.adopt(FILE)
        agent.allocate(FILE, 0, START)
        agent.allocate(FILE, START + PAGES * PAGE_SIZE, SIZE - START - PAGES * PAGE_SIZE)

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """Write the range in the file that is there; a hole is punched."""
        agent.write_pages(FILE, START, fill, PAGE_SIZE)
        return Page(FILE, START + NUMBER * PAGE_SIZE, agent.file_system(FILE))

    def view(self) -> GuestView:
        """The same addresses of guest memory."""
        return GuestView("/dev/mem", START)

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """The page's offset is its guest-physical address; QEMU and its mappings must agree.

        (HMP ``gpa2hva``; /proc/PID/maps of QEMU has the file's offset at that host address.)
        """
        said = recorder.monitor(f"gpa2hva {page.offset:#x}")
        found = _TRANSLATION.search(said)
        if found is None:
            raise HostfaultError(f"QEMU does not know guest address {page.offset:#x}: {said}")
        mapped = agent.mapped_at(QEMU_CHILD, int(found[2], 16))
        if mapped is None or (mapped[0], mapped[1]) != (FILE, page.offset):
            raise HostfaultError(
                f"guest address {page.offset:#x} is backed by {mapped}, not by {page}"
            )
        return page.offset // PAGE_SIZE

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """None."""
        return {}
