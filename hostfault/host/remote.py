"""A machine of a lab as the host: its own kernel is under test, each case in a fresh guest.

Everything that runs there is brought along, into a directory of its own (:mod:`leased`): the
agent, the back-end, the image's QEMU with its loader and libraries, and the guest's images.
"""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import hostfault
from hostfault.agent import keeper
from hostfault.backing import BACKINGS, Backing, Python
from hostfault.case.folder import AGENT_LOG
from hostfault.case.model import Ended, Event, GuestImage, Kernel, Qemu, Scenario
from hostfault.case.words import HOST_OOPS
from hostfault.guest.policy import VmmPolicy
from hostfault.host.leased import BusyError, LeasedMachine, boot_id_of, leased
from hostfault.host.qemu import environment_of
from hostfault.host.site import QMP, SSH, GuestPlan, Site, boot_or_try_again, bring_up
from hostfault.host.testbed import Added, Stopwatch, Testbed
from hostfault.image.bundle import PROGRAM
from hostfault.image.programs import loader_argv
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError, SetupError
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.forward import forwarded
from hostfault.remote.openssh import Target

log = logging.getLogger(__name__)

RETURN_PATIENCE = 300.0  # seconds for a machine that has died to be back; a server takes minutes
CONSOLE_TAIL = 20000  # bytes of a console that are looked at: a panic with its backtraces
UNPACKED = 5  # how many times larger than its archive is what we bring, at most
SHARE = 128 << 20  # bytes more for the share and the logs
RELAY = "hostfault.agent.relay"


class Console:
    """What shows a machine's console: a file, or a command whose output it is."""

    def __init__(self, source: str) -> None:
        """What it has shown by now is not this run's."""
        self._source = source
        self._before = len(self._all())

    def news(self) -> str:
        """The end of what it has shown since; "" where there is none."""
        return self._all()[self._before :][-CONSOLE_TAIL:].decode(errors="replace")

    def _all(self) -> bytes:
        """Raises :class:`SetupError` for a source that is no file and no command that works."""
        if not self._source:
            return b""
        if Path(self._source).is_file():
            return Path(self._source).read_bytes()
        try:
            done = subprocess.run(
                ["sh", "-c", self._source], capture_output=True, timeout=30.0, check=True
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise SetupError(f"--host-console: no file, and not a command: {error}") from error
        return done.stdout


@dataclass(frozen=True)
class RemoteFiles:
    """What is brought along."""

    qemu: Path  # archive of the image's QEMU
    kernel: Kernel  # of the guest
    image_for: Callable[[Backing], GuestImage]


class RemoteHost:
    """Boots a guest for each case on a machine that it leases. A context manager."""

    def __init__(
        self,
        target: Target,
        qemu: Qemu,
        files: RemoteFiles,
        identity: Identity,
        added: Added,
        console: Console,
    ) -> None:
        """``qemu`` is the image's as this machine runs it, to see what it can do."""
        self._target, self._qemu, self._files = target, qemu, files
        self._identity, self._added, self._console = identity, added, console
        self._machine: LeasedMachine | None = None
        self._lease = ExitStack()

    def __enter__(self) -> RemoteHost:
        return self

    def __exit__(self, *_error: object) -> None:
        self._lease.close()

    @property
    def machine(self) -> LeasedMachine:
        """The machine; leased anew if the connection has broken since. Raises HostfaultError."""
        if self._machine is not None and not self._machine.alive:
            self._lease.close()
            self._machine = None
            patience = keeper.SILENCE + keeper.GRACE * 2 + 10.0
            self._take(Deadline(patience, f"{self._target} to end the lease that broke"))
        elif self._machine is None:
            self._take(Deadline(0.0, "a lease"))
        assert self._machine is not None
        return self._machine

    def _take(self, deadline: Deadline) -> None:
        """Lease the machine and bring what every case needs; a busy one until the deadline."""

        def attempt() -> LeasedMachine | None:
            try:
                return self._lease.enter_context(leased(self._target, self._needed()))
            except BusyError as error:
                deadline.saw(error)
                if deadline.passed():
                    raise
                return None

        machine = poll(deadline, attempt, interval=1.0)
        machine.put(programs())
        machine.send(self._files.qemu)
        self._machine = machine

    @contextmanager
    def testbed(self, scenario: Scenario, folder: Path) -> Iterator[Testbed]:
        """A freshly booted guest."""
        with ExitStack() as stack:
            yield boot_or_try_again(stack, lambda inner: self._boot(inner, scenario, folder))

    def _boot(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Testbed:
        backing = BACKINGS[scenario.backing]
        backing.require(self._qemu, environment_of(self._qemu))
        machine, image = self.machine, self._files.image_for(backing)
        initramfs = f"guest-initramfs-{image.key or backing.name}"
        machine.put({"guest-kernel": self._files.kernel.image, initramfs: image.initramfs})
        watch = Stopwatch()
        agent = stack.enter_context(_remote_agent(machine, folder))
        directory = str(agent.hello()["dir"])
        ours = machine.facts.directory
        reach = stack.enter_context(short_directory())
        for name in (QMP, SSH):
            there = f"{directory}/{name}"
            stack.enter_context(forwarded(reach / name, lambda p=there: machine.channel(RELAY, p)))  # type: ignore[misc]
        site = Site(
            agent=agent,
            directory=directory,
            python=Python((machine.facts.python, "-P"), _environment(ours)),
            qemu=loader_argv(Path(ours), PROGRAM),
            kernel=f"{ours}/guest-kernel",
            initramfs=f"{ours}/{initramfs}",
            sockets=directory,
            reach=reach,
            life=RemoteLife(machine, self._console),
            policy=self._policy(machine),
        )
        log.info("booting a guest on %s, kernel %s", machine.target, self._files.kernel.release)
        plan = GuestPlan(scenario, self._qemu, self._identity, self._added, folder)
        return bring_up(stack, site, plan, watch)

    def _policy(self, machine: LeasedMachine) -> VmmPolicy:
        """The same as here, with its library brought along."""
        policy = self._added.policy
        if not policy.library:
            return policy
        name = Path(policy.library).name
        machine.put({name: Path(policy.library)})
        return replace(policy, library=f"{machine.facts.directory}/{name}")

    def _needed(self) -> int:
        """Bytes that what we bring may take there."""
        return self._files.qemu.stat().st_size * UNPACKED + SHARE


@contextmanager
def _remote_agent(machine: LeasedMachine, folder: Path) -> Iterator[Agent]:
    """An agent there; it ends its children and removes its files when we hang up.

    ``folder`` gets what it printed.
    """
    machine.agents += 1
    agent = Agent(machine.channel(RELAY, f"{machine.facts.directory}/{keeper.AGENTS}"))
    try:
        agent.hello()
        yield agent
    finally:
        agent.close()
        words = machine.read(keeper.AGENT_LOG.format(machine.agents)) if machine.alive else ""
        (folder / AGENT_LOG).write_text(words)


def programs() -> Mapping[str, Path]:
    """What of ours runs on a host, by its path there."""
    package = Path(hostfault.__file__).parent
    files = [package / "__init__.py"]
    files += [path for room in ("agent", "daxfs") for path in (package / room).rglob("*.py")]
    return {f"python/hostfault/{path.relative_to(package)}": path for path in files}


def _environment(directory: str) -> dict[str, str]:
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"{directory}/python",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass(frozen=True)
class RemoteLife:
    """Of a machine that we reach over SSH: it has died if it comes back as another boot of itself.

    Or if its console says so; a connection alone can break for other reasons.
    """

    machine: LeasedMachine
    console: Console
    on_tcg = False

    def ended(self) -> Ended | None:
        """Nothing tells, as long as it answers."""
        return None

    def events(self) -> Sequence[Event]:
        """Nobody reports any."""
        return ()

    def ended_silently(self, silence: str) -> Ended | None:
        """Ask its console, and wait for it to come back.

        Raises :class:`ConnectionLostError` with what was seen last if neither tells.
        """
        target, before = self.machine.target, self.machine.facts.boot_id
        deadline = Deadline(RETURN_PATIENCE, f"{target} to come back, or its console to tell")
        self.machine.give_up()
        log.info("%s does not answer (%s); waiting for it to come back", target, silence)

        def look() -> Ended | str | None:
            shown = self.console.news()
            if HOST_OOPS.search(shown):
                return Ended(None, None, shown)
            try:
                found = boot_id_of(target, Deadline(10.0, f"SSH of {target}"))
            except HostfaultError as error:
                deadline.saw(error)
                return None
            if found == before:
                return "the same boot"
            return Ended(
                None, None, f"{shown}\n{target} is back with boot id {found}, not {before}"
            )

        try:
            ended = poll(deadline, look, interval=1.0)
        except DeadlineError as error:
            raise ConnectionLostError(f"{silence}; {error}") from error
        return ended if isinstance(ended, Ended) else None
