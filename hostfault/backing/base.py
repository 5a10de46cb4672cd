"""What a backing is: a way in which host memory or a host file becomes guest memory."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hostfault.case.model import PAGE_SIZE, Page, Qemu
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

PAGES = 16  # of the range that a case's guest task maps
NUMBER = 8  # of the page in it that the case is about: neither the first nor the last
GUEST_MEMORY = 256  # MiB
QEMU_CHILD = "qemu"  # what the agent calls the guest's QEMU
BACK_END_CHILD = "daxfs"  # and a program that serves the guest


class Ability(enum.Enum):
    """What a fault may need of a backing; the value completes "needs ..."."""

    HOST_FILE = "a host file of its own that may be truncated"
    GUEST_FILE = "a file that the guest can truncate"
    HOST_PAGE = "a host file that may lose a single page"
    HOST_NAME = "a host file with a name that may be changed"
    OWN_FILE_SYSTEM = "a host file system of its own that may be filled"
    SMALL_PAGES = "a host file that may end within a page"
    DISK = "a disk of its own that may fail"
    POOL = "a pool of huge pages of its own that may run dry"
    MISSING_FAULTS = "memory whose missing pages a userfaultfd can be told of"
    CHARGED = "memory that is charged to a memory cgroup and may be swapped out"
    BACK_END = "a program on the host that serves the guest"


@dataclass(frozen=True)
class GuestView:
    """The range of a case as the guest's task opens it."""

    path: str
    start: int  # of the range in that file, bytes
    length: int = PAGES * PAGE_SIZE  # bytes; PAGES pages of the host's
    offset: int = NUMBER * PAGE_SIZE  # of the page in the range


@dataclass(frozen=True)
class Python:
    """How a program of ours is run on the host."""

    argv: tuple[str, ...]  # start of its command line
    env: Mapping[str, str]  # its whole environment
    user: int | None = None  # whom it should become (and the group); None: nobody else
    on_tcg: bool = False  # on a host whose CPU TCG emulates
    instead: tuple[str, ...] = ()  # command line of what serves virtiofs there in place of ours
    share_size: int = 128 << 20  # bytes that a guest can fill of what it serves


@dataclass(frozen=True)
class QemuOptions:
    """What a backing adds to QEMU's command line."""

    memory: tuple[str, ...]  # options that make all of guest memory
    devices: tuple[str, ...] = ()
    machine: tuple[str, ...] = ("memory-backend=mem",)  # properties; "mem" is then one of memory's


MEMFD = QemuOptions(
    ("-object", f"memory-backend-memfd,id=mem,size={GUEST_MEMORY}M,share=on,prealloc=on")
)
"""Guest memory that is nobody's business, there before the guest runs."""


class Backing(Protocol):
    """One way. Its methods act on a host through the agent, and in the guest through a shell.

    Those that act raise :class:`~hostfault.plumbing.errors.HostfaultError`.
    """

    @property
    def name(self) -> str:
        """In test ids and ``--backing``."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """What a fault may ask of it."""

    @property
    def guest_modules(self) -> tuple[str, ...]:
        """Modules that the guest's kernel needs, built in or not."""

    @property
    def guest_programs(self) -> tuple[str, ...]:
        """Programs of the host image that the guest needs, as paths there; busybox it has."""

    @property
    def guest_options(self) -> str:
        """Added to the guest kernel's command line."""

    @property
    def logs(self) -> Mapping[str, str]:
        """Files that it leaves with a test: name in the test's folder, and what is in it."""

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """Raise :class:`MissingCapabilityError` if this QEMU cannot do it."""

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Start what it needs on the host; ``directory`` is the agent's. Before QEMU."""

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """What QEMU's command line needs.

        ``on_unbacked`` is what the memory backend is to do about a page that the host cannot back,
        by that option; "" for a QEMU as it is. Raises :class:`UsageError` for a backing without
        such a backend.
        """

    def check_alive(self, agent: Agent) -> None:
        """Raise :class:`LaunchError` if something of it has ended while it was needed."""

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Make it usable in the guest, and prove from inside that it is what it should be."""

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """Make the range anew: page N is full of the byte ``fill[N]``, None is a hole."""

    def view(self) -> GuestView:
        """Where a guest task finds that range."""

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """The guest frame (gfn) of the page, proven; ``writes``: also for an access that writes.

        Asked once a task has touched the range. Raises ``DeadlineError`` where nothing proves
        that the guest's page is the host's: then a fault would prove nothing.
        """

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """The texts of :attr:`logs`."""
