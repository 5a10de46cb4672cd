"""Where the host keeps the memory of a backing: a file on a tmpfs, a memfd, huge pages, ext4.

A backing in which guest memory is a range of one host file takes one of these. The file holds the
16 pages that a case is about and little else, so that it may lose all of them and the guest lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hostfault.backing.base import PAGES, QEMU_CHILD, Ability
from hostfault.case.model import PAGE_SIZE
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.agent import Agent, require_expendable

FOLDER = "ram"  # in the agent's directory: where the file system is
FILE = f"{FOLDER}/memory"
PART = "part"  # QEMU's name for it
SMALL = 2 << 20  # bytes of the file: those pages, and enough for a BAR or a memslot of its own
PMEM = 32 << 20  # bytes of one that holds a file system of the guest's
ROOM = 4 << 20  # bytes of a file system beyond that
HUGE_PAGE = 2 << 20  # bytes
SPARE_PAGES = 2  # huge ones of the pool that nobody needs
MEMFD = "/memfd:memory-backend-memfd (deleted)"  # as proc(5) shows QEMU's


def option_of(on_unbacked: str) -> str:
    """What a memory backend's options end with, to say what becomes of a missing page."""
    return f",on-unbacked={on_unbacked}" if on_unbacked else ""


class Store(Protocol):
    """One kind of memory. Its methods raise :class:`HostfaultError`."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What a fault may ask of it."""

    @property
    def size(self) -> int:
        """Of the file, bytes."""

    @property
    def page_size(self) -> int:
        """Of what the host can have or lose, bytes."""

    @property
    def mapped_as(self) -> str:
        """What proc(5) calls it in QEMU's mappings; relative to the agent's directory."""

    @property
    def private(self) -> bool:
        """Whether QEMU has a copy of its own of each page that the guest has written."""

    @property
    def huge(self) -> bool:
        """Whether QEMU must be seen to have a page mapped as one huge page before it is lost."""

    def start(self, agent: Agent) -> None:
        """Make the file system that it lies on. Before QEMU."""

    def object(self, directory: str, ident: str) -> str:
        """QEMU's ``-object`` for it."""

    def take(self, agent: Agent) -> None:
        """Let the agent act on the file that QEMU has made, by the name :data:`FILE`."""


@dataclass(frozen=True)
class TmpfsFile:
    """A file on a tmpfs of the agent's own."""

    private: bool = False  # mapped with share=off, as a VM that goes on from a snapshot file
    huge: bool = False
    page_size: int = PAGE_SIZE
    size: int = SMALL
    mapped_as: str = FILE

    @property
    def abilities(self) -> frozenset[Ability]:
        """All that can be done to a file."""
        return frozenset(
            {
                *(Ability.HOST_FILE, Ability.HOST_PAGE, Ability.HOST_NAME),
                *(Ability.SMALL_PAGES, Ability.OWN_FILE_SYSTEM, Ability.MISSING_FAULTS),
                Ability.CHARGED,
            }
        )

    def start(self, agent: Agent) -> None:
        """Mount the tmpfs."""
        _mount_tmpfs(agent, self)

    def object(self, directory: str, ident: str) -> str:
        """The file, which QEMU makes."""
        share = "off" if self.private else "on"
        return (
            f"memory-backend-file,id={ident},size={self.size},share={share},"
            f"mem-path={directory}/{FILE}"
        )

    def take(self, agent: Agent) -> None:
        """By its name."""
        agent.adopt(FILE)


@dataclass(frozen=True)
class TransparentHugeFile:
    """A file on a tmpfs that takes huge pages where it can (tmpfs(5), huge=always).

    Nobody reserves them, and the file may lose a part of one: then the kernel splits it.
    """

    abilities: frozenset[Ability] = frozenset(
        {
            *(Ability.HOST_FILE, Ability.HOST_PAGE, Ability.HOST_NAME),
            *(Ability.SMALL_PAGES, Ability.OWN_FILE_SYSTEM),
        }
    )
    private: bool = False
    huge: bool = True
    page_size: int = HUGE_PAGE
    size: int = PAGES * HUGE_PAGE
    mapped_as: str = FILE

    def start(self, agent: Agent) -> None:
        """Mount the tmpfs."""
        _mount_tmpfs(agent, self)

    def object(self, directory: str, ident: str) -> str:
        """The file, where a huge page of it can be one in QEMU's page tables."""
        return f"{TmpfsFile(size=self.size).object(directory, ident)},align={HUGE_PAGE}"

    def take(self, agent: Agent) -> None:
        """By its name."""
        agent.adopt(FILE)


@dataclass(frozen=True)
class Memfd:
    """An anonymous file of QEMU's, sealed: nobody can cut it (memfd_create(2), F_SEAL_SHRINK)."""

    abilities: frozenset[Ability] = frozenset(
        {Ability.HOST_PAGE, Ability.SMALL_PAGES, Ability.MISSING_FAULTS, Ability.CHARGED}
    )
    private: bool = False
    huge: bool = False
    page_size: int = PAGE_SIZE
    size: int = SMALL
    mapped_as: str = MEMFD

    def start(self, agent: Agent) -> None:
        """Nothing: the kernel has a tmpfs for these."""

    def object(self, directory: str, ident: str) -> str:
        """The memfd."""
        return f"memory-backend-memfd,id={ident},size={self.size},share=on"

    def take(self, agent: Agent) -> None:
        """From QEMU's descriptors."""
        agent.adopt_descriptor(QEMU_CHILD, MEMFD, FILE)


@dataclass(frozen=True)
class DiskFile:
    """A file on ext4, on a loop device of the agent's own.

    Its pages are 2 MiB apart, so that no reading ahead brings one of them in with another. Whether
    it is full cannot be seen by reading it, as a hole of ext4 takes no room until it is written to.
    """

    abilities: frozenset[Ability] = frozenset(
        {Ability.HOST_FILE, Ability.HOST_PAGE, Ability.HOST_NAME, Ability.SMALL_PAGES, Ability.DISK}
    )
    private: bool = False
    huge: bool = False
    page_size: int = HUGE_PAGE
    size: int = PAGES * HUGE_PAGE
    mapped_as: str = FILE

    def start(self, agent: Agent) -> None:
        """Make the disk and mount it; that is for emulated hosts only."""
        require_expendable(agent, "it mounts a disk of its own")
        agent.make_directory(FOLDER)
        if not agent.mount_disk(FOLDER, self.size + ROOM):
            raise MissingCapabilityError("loop", "the host's kernel needs CONFIG_BLK_DEV_LOOP")

    def object(self, directory: str, ident: str) -> str:
        """The file, which QEMU makes."""
        return TmpfsFile(size=self.size).object(directory, ident)

    def take(self, agent: Agent) -> None:
        """By its name."""
        agent.adopt(FILE)


@dataclass(frozen=True)
class HugeFile:
    """A file on a hugetlbfs with pages of 2 MiB, none of them reserved (mmap(2), MAP_NORESERVE)."""

    abilities: frozenset[Ability] = frozenset(
        {
            *(Ability.HOST_FILE, Ability.HOST_PAGE, Ability.HOST_NAME),
            *(Ability.POOL, Ability.MISSING_FAULTS),
        }
    )
    private: bool = False
    huge: bool = False
    page_size: int = HUGE_PAGE
    size: int = PAGES * HUGE_PAGE
    mapped_as: str = FILE

    def start(self, agent: Agent) -> None:
        """Fill the machine's pool and mount the hugetlbfs; that is for emulated hosts only."""
        require_expendable(agent, "it takes huge pages from the machine")
        agent.make_directory(FOLDER)
        agent.mount_huge_pages(FOLDER, PAGES + SPARE_PAGES)

    def object(self, directory: str, ident: str) -> str:
        """The file, which QEMU makes."""
        return (
            f"memory-backend-file,id={ident},size={self.size},share=on,reserve=off,"
            f"mem-path={directory}/{FILE}"
        )

    def take(self, agent: Agent) -> None:
        """By its name."""
        agent.adopt(FILE)


def _mount_tmpfs(agent: Agent, store: Store) -> None:
    agent.make_directory(FOLDER)
    if not agent.mount(FOLDER, store.size + ROOM, huge=store.huge):
        raise MissingCapabilityError(
            "tmpfs", "the agent may not mount a tmpfs for guest memory: be root"
        )
