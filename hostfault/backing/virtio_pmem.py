"""virtio-pmem: memory of a host file, on which the guest has a file system that it mounts for DAX.

The guest makes the file system and in it a file, once, and syncs it. From then on the guest's page
cache has nothing of that file: its pages are the guest's memory, and so the host file's. Where they
lie in the host file is found there, by what the guest has written into them.
(QEMU's docs/system/devices/virtio/virtio-pmem.rst; Documentation/filesystems/dax.rst.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hostfault.backing.base import MEMFD, PAGES, Ability, GuestView, Python, QemuOptions
from hostfault.backing.region import make_page, proven_frame, view_of
from hostfault.backing.store import FILE, PART, Store, option_of
from hostfault.case.model import Page, Qemu
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

MOUNT_POINT = "/mnt"
DATA = f"{MOUNT_POINT}/data"
MARK = "hostfault-range"  # with the end of its line 16 bytes, so each page begins with it
# Bytes of the guest's file: what follows is in one piece, as the file system allocates it.
SKIP = 64 << 10
MOST = 1 << 30  # bytes of guest memory and devices together


@dataclass(frozen=True)
class FileSystem:
    """What the guest makes on the device, and mounts for DAX."""

    name: str  # as /proc/mounts has it
    make: str  # the command that makes it, up to the device
    options: str  # of the mount
    modules: tuple[str, ...] = ()  # that the guest's kernel needs, built in or not
    programs: tuple[str, ...] = ()  # of the host image that the guest needs, as paths there


EXT4 = FileSystem("ext4", "mke2fs -q -b 4096", "dax")
# xfsprogs wants 300 MiB at least for what it supports, and a log that is too large for this device
# where there are more features or groups; the kernel does not care.
XFS = FileSystem(
    "xfs",
    "mkfs.xfs -q -f --unsupported -m reflink=0,rmapbt=0 -d agcount=1",
    "dax=always",
    ("xfs",),
    ("usr/sbin/mkfs.xfs",),
)


@dataclass(frozen=True)
class VirtioPmem:
    """A file of the guest's, whose pages are those of the host file."""

    name: str
    store: Store
    file_system: FileSystem = EXT4
    drivers: tuple[str, ...] = ("virtio_pmem", "nd_pmem")  # of the device, modules of the guest's
    guest_options: str = ""
    address: re.Pattern[str] = re.compile(r"\[virtio-pmem\].*\n\s+memaddr: (0x[0-9a-f]+)")

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the file."""
        return self.store.abilities

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """Those of the device and of the file system."""
        return (*self.drivers, *self.file_system.modules)

    @property
    def guest_programs(self) -> tuple[str, ...]:
        """What makes the file system, unless busybox does."""
        return self.file_system.programs

    @property
    def logs(self) -> Mapping[str, str]:
        """None."""
        return {}

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """Every QEMU since 4.1 can."""

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Make what the file lies on."""
        self.store.start(agent)

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """The file and the device."""
        device = (
            *("-m", f"maxmem={MOST}"),
            *("-object", self.store.object(directory, PART) + option_of(on_unbacked)),
            *("-device", f"virtio-pmem-pci,memdev={PART},modern-pio-notify=on"),
        )
        return QemuOptions(MEMFD.memory, device)

    def check_alive(self, agent: Agent) -> None:
        """There is nothing that could end."""

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Make the file system and the file in the guest; check that it is a DAX mount."""
        length, kind = PAGES * self.store.page_size, self.file_system
        guest.check(f"{kind.make} /dev/pmem0", deadline)
        guest.check(f"mount -t {kind.name} -o {kind.options} /dev/pmem0 {MOUNT_POINT}", deadline)
        mounts = guest.check("cat /proc/mounts", deadline)
        line = next((line for line in mounts.splitlines() if f" {MOUNT_POINT} " in line), "")
        if f" {kind.name} " not in line or "dax" not in line:
            raise HostfaultError(f"the guest's mount is not a DAX mount: {line or mounts!r}")
        fill = f"(head -c {SKIP} /dev/zero; yes {MARK} | head -c {length}) >{DATA} && sync"
        guest.check(fill, deadline)
        self.store.take(agent)

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """Where the guest has put its file; in new pages, which KVM has not mapped yet."""
        size = self.store.page_size
        at = agent.find_pages(FILE, f"{MARK}\n" * (size // (len(MARK) + 1)), PAGES)
        agent.punch(FILE, at, PAGES * size)
        return make_page(agent, self.store, at, fill)

    def view(self) -> GuestView:
        """The guest's own file."""
        return view_of(self.store, DATA, SKIP)

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """Where QEMU says that the device's memory is (HMP ``info memory-devices``)."""
        said = recorder.monitor("info memory-devices")
        found = self.address.search(said.replace("\r", ""))
        if found is None:
            raise HostfaultError(f"QEMU does not say where its {self.name} is:\n{said}")
        address = int(found[1], 16) + page.offset
        return proven_frame(agent, recorder, self.store, address, page.offset)

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """None."""
        return {}
