"""A test bed: a guest on a host, ready for one case; what every kind of host hands on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hostfault.backing import Backing
from hostfault.case.folder import GUEST_CONSOLE, GUEST_QEMU_LOG
from hostfault.case.model import Ended, Event, Scenario
from hostfault.guest import boot
from hostfault.guest.policy import AS_IT_IS, VmmPolicy
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Line, Recorder
from hostfault.remote.shell import Shell, Stream

if TYPE_CHECKING:
    from hostfault.remote.ssh import SshShell

log = logging.getLogger(__name__)

AGENT_CALLS = 3  # unanswered ones after which the host itself is asked
ATTEMPTS = 3  # at a boot: in an emulated host a guest dies at its start now and then
BOOT_PATIENCE = 120.0  # seconds; an emulated guest takes 5 to 8


class HostLife(Protocol):
    """How a host is known to live."""

    @property
    def on_tcg(self) -> bool:
        """Whether its CPU is emulated."""

    def ended(self) -> Ended | None:
        """How it came to an end; None while it lives."""

    def ended_silently(self, silence: str) -> Ended | None:
        """The same of a host whose agent is gone; ``silence`` says what went unanswered."""

    def events(self) -> Sequence[Event]:
        """What its own machine has reported."""


class OutlivesUs:
    """The life of a local host: when that ends, nobody asks."""

    on_tcg = False

    def ended(self) -> Ended | None:
        """It runs us."""
        return None

    def ended_silently(self, silence: str) -> Ended | None:  # noqa: ARG002 (a protocol)
        """It runs us."""
        return None

    def events(self) -> Sequence[Event]:
        """Nobody reports it."""
        return ()


class Stopwatch:
    """Notes how long each phase took."""

    def __init__(self, phases: Mapping[str, float] | None = None) -> None:
        self.phases = dict(phases or {})  # seconds, by name
        self._last = now()

    def lap(self, name: str) -> None:
        """Book the seconds since the last lap under ``name``."""
        at = now()
        self.phases[name] = self.phases.get(name, 0.0) + at - self._last
        self._last = at


@dataclass(frozen=True)
class Testbed:
    """A guest with its backing mounted, and every way to see it."""

    __test__ = False  # pytest: no test class

    backing: Backing
    agent: Agent
    recorder: Recorder  # QMP of the guest's QEMU
    guest: Shell
    probe: Stream | None = None  # a probe that waits for its request; None: none was started yet
    log_in_to_guest: Callable[[Deadline], SshShell] | None = None  # one more connection, for people
    log_in_to_host: Callable[[Deadline], SshShell] | None = None  # None: a local host
    host: HostLife = field(default_factory=OutlivesUs)
    policy: VmmPolicy = AS_IT_IS
    watch: Stopwatch = field(default_factory=Stopwatch)
    cached: bool = False  # forked from a snapshot that was there
    slowness: float = 1.0  # how many times longer than in QEMU all that is waited for may take

    def deadline(self, seconds: float, what: str) -> Deadline:
        """For what takes so long in QEMU at most."""
        return Deadline(seconds * self.slowness, what)

    def agent_answers(self) -> bool:
        """Whether the host's agent answers one of a few calls."""
        for _ in range(AGENT_CALLS):
            try:
                self.agent.hello()
            except ConnectionLostError:
                continue
            return True
        return False


class Host(Protocol):
    """Where the KVM under test runs."""

    def testbed(self, scenario: Scenario, folder: Path) -> AbstractContextManager[Testbed]:
        """A fresh guest for one case; ``folder`` gets its logs."""


@dataclass(frozen=True)
class Added:
    """What a person added to a guest and its QEMU, see ``--qemu-option`` and its kin."""

    qemu_options: tuple[str, ...] = ()
    guest_append: tuple[str, ...] = ()
    policy: VmmPolicy = AS_IT_IS
    virtiofsd: tuple[str, ...] = ()  # command line of the back-end on the host, see --virtiofsd
    share_size: int | None = None  # bytes of the share; None: what a case needs
    keep_user: bool = False  # QEMU and the back-end stay root: a guest may then give files away


@dataclass(frozen=True)
class GuestLaunch:
    """How a guest's QEMU is started and spoken to."""

    argv: Sequence[str]
    env: Mapping[str, str]
    qmp: Path | Line  # its socket on this machine, or the way to it
    changes_user: bool = False  # by itself, see host/qemu.py


def boot_guest(
    agent: Agent,
    backing: Backing,
    launch: GuestLaunch,
    recorder: Recorder,
    slowness: float = 1.0,
) -> None:
    """Start the guest's QEMU, record from before its first instruction, wait for its init.

    ``slowness`` is how many times longer than usual it may take.
    """
    boot.start(agent, launch.argv, launch.env, changes_user=launch.changes_user)

    def alive() -> None:
        backing.check_alive(agent)
        _check_running(agent, recorder)
        boot.check_alive(agent, launch.argv)

    deadline = Deadline(30.0 * slowness, "QMP of the guest's QEMU")
    if isinstance(launch.qmp, Line):
        recorder.pick_up(launch.qmp, deadline, alive)
    else:
        recorder.connect(launch.qmp, deadline, alive)
    recorder.execute("cont")
    log.info("waiting for the guest to boot")
    boot.wait_ready(agent, Deadline(BOOT_PATIENCE * slowness, "the guest to boot"), alive)


def _check_running(agent: Agent, recorder: Recorder) -> None:
    """Raise :class:`HostfaultError` if the guest stopped by itself."""
    if any(event.name == "STOP" for event in recorder.events()):
        state = recorder.execute("query-status")["status"]
        words = boot.qemu_log(agent) + boot.console(agent)
        raise HostfaultError(f"the guest stopped while it booted, run state {state}:\n{words}")


def log_in(name: str, path: Path, keys: Identity, deadline: Deadline) -> SshShell:
    """A connection of our own, see :func:`hostfault.remote.ssh.connect`."""
    # Only here: paramiko takes long to import, and a case needs it where a host is silent.
    from hostfault.remote.ssh import connect

    return connect(name, path, keys, deadline)


def mount_backing(agent: Agent, backing: Backing, guest: Shell, slowness: float = 1.0) -> None:
    """Make the backing usable in the guest, and prove that it is what it should be."""
    log.info("mounting the backing in the guest")
    backing.mount(agent, guest, Deadline(30.0 * slowness, "the guest to mount the backing"))


def keep_logs(agent: Agent, backing: Backing, policy: VmmPolicy, folder: Path) -> None:
    """Fetch the logs that lie on the host, however the case went; a dead host gives none."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        console, qemu = boot.logs(agent)
        texts = {GUEST_CONSOLE: console, GUEST_QEMU_LOG: qemu, **backing.read_logs(agent)}
        texts |= dict(zip(policy.logs, agent.tails(policy.logs, 65536), strict=True))
    except HostfaultError as error:
        names = (GUEST_CONSOLE, GUEST_QEMU_LOG, *backing.logs, *policy.logs)
        texts = dict.fromkeys(names, f"not to be had: {error}")
    for name, text in texts.items():
        (folder / name).write_text(text)
