"""What an emulated host needs of the machine that it is, whichever program emulates that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from hostfault.case.model import Ended, Event, Kernel
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.qmp import Line as QmpLine
from hostfault.remote.shell import Stream


class OuterMachine(Protocol):
    """A running machine, with the kernel under test in it."""

    @property
    def agent(self) -> Stream:
        """The stream to the agent in the machine."""

    @property
    def guest_qmp(self) -> QmpLine:
        """The way to QMP of the guest's QEMU, which may come later, and may have been saved."""

    def boot(self, deadline: Deadline) -> None:
        """Let it run until its init says that it is ready.

        Raises :class:`~hostfault.plumbing.errors.SetupError` with the kernel's words otherwise.
        """

    def save(self, path: Path, deadline: Deadline) -> None:
        """Stop it and write it to ``path``, nested state included."""

    def load(self, path: Path, deadline: Deadline) -> None:
        """Become the machine that was saved there, and go on."""

    def ended(self) -> Ended | None:
        """How its kernel came to an end; None while it lives.

        Raises :class:`~hostfault.plumbing.errors.LaunchError` if the emulator itself did.
        """

    def hung(self, words: str) -> Ended:
        """What to record for a host that runs and does not answer.

        Raises :class:`~hostfault.plumbing.errors.HostfaultError` if that is this machine's doing.
        """

    def events(self) -> Sequence[Event]:
        """What the emulator has reported."""


class OuterSpec(Protocol):
    """Everything that decides what a machine is."""

    @property
    def kernel(self) -> Kernel:
        """The kernel under test."""

    @property
    def emulates(self) -> bool:
        """Whether its CPU is emulated; otherwise it is this machine's."""

    @property
    def slowness(self) -> float:
        """How many times longer it may take than QEMU would, for all that is waited for."""

    @property
    def spares(self) -> int:
        """How many connections to the guest a snapshot has that nothing uses yet."""

    @property
    def qmp_chardev(self) -> str:
        """The chardev of the guest's QEMU at the other end of :attr:`OuterMachine.guest_qmp`."""

    def key(self) -> Mapping[str, str | Path]:
        """What a snapshot's key must have of it, the kernel's and initramfs' contents included."""

    def start(
        self, directory: Path, folder: Path, *, saved: Path | None
    ) -> AbstractContextManager[OuterMachine]:
        """The machine, for the length of the block: to be booted, or to load what was ``saved``.

        ``directory`` (short path) gets its sockets, ``folder`` its logs. Raises
        :class:`~hostfault.plumbing.errors.LaunchError` if the emulator ends at once.
        """
