"""An emulated host (L1): the kernel under test, booted in QEMU or Bochs, the guest (L2) inside it.

Each configuration is booted once, up to "guest reachable, backing mounted", saved whole as a
snapshot, and kept in the cache; every case runs in a fork of its own. The guest's QEMU is stopped
before the host is saved, as a running guest fails to load now and then; by SIGSTOP and not by QMP,
which would have each fork set the back-end's rings up again.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hostfault
from hostfault.backing import BACKINGS, Backing, Python
from hostfault.case.folder import GUEST_QMP, HOST_SERIAL
from hostfault.case.model import Ended, Event, Kernel, Scenario
from hostfault.guest import boot, probe
from hostfault.host.outer import OuterMachine, OuterSpec
from hostfault.host.outer_qemu import DYING, GUEST_SSH_PORT, Sockets
from hostfault.host.testbed import (
    AGENT_CALLS,
    ATTEMPTS,
    Added,
    GuestLaunch,
    Stopwatch,
    Testbed,
    boot_guest,
    keep_logs,
    log_in,
    mount_backing,
)
from hostfault.image.qemu import PROGRAM
from hostfault.plumbing.cache import Cache, key_of, no_space
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    SetupError,
)
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.carried import CarriedShell, CarriedStream, Client
from hostfault.remote.qmp import ANSWER, Recorder

log = logging.getLogger(__name__)

PAYLOAD = "/run/hostfault"  # in the host
DIRECTORY = "/run/hostfault/run"  # the agent's, in the host
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # of what runs in the host
PYTHON = Python(
    ("/usr/bin/python3", "-P"),
    {**ENVIRONMENT, "PYTHONPATH": f"{PAYLOAD}/python", "PYTHONDONTWRITEBYTECODE": "1"},
)
VIRTIOFSD = "virtiofsd"  # below PAYLOAD: the back-end that was named in place of ours
QEMU = "/usr/bin/qemu-system-x86_64"  # in the host
GUEST_CLIENT = Client(
    (
        *("dbclient", "-T", "-i", f"{PAYLOAD}/client_key", "-p", str(GUEST_SSH_PORT)),
        "root@127.0.0.1",
    ),
    {**ENVIRONMENT, "HOME": PAYLOAD},  # where its known_hosts is
)
LOG_IN = 30.0  # seconds
AGENT_PATIENCE = 10.0  # seconds for one answer
_SNAPSHOT, _NOTES = "ram", "notes.json"  # in a cache entry


def payload(
    guest_kernel: Path,
    guest_initramfs: Path,
    keys: Identity,
    more: Sequence[Path] = (),
    virtiofsd: Path | None = None,
) -> Mapping[str, Path]:
    """What the host's initramfs must carry, by its name below /run/hostfault.

    ``more`` is what there may be besides: the library of a VMM policy, a QEMU for the guest;
    ``virtiofsd`` a back-end in place of ours.
    """
    package = Path(hostfault.__file__).parent
    rooms = [package / "agent", package / "daxfs"]
    programs = [package / "__init__.py", *sorted(p for room in rooms for p in room.rglob("*.py"))]
    return {
        "guest-kernel": guest_kernel,
        "guest-initramfs": guest_initramfs,
        "client_key": keys.client_key_dropbear,
        **{each.name: each for each in more},
        **({} if virtiofsd is None else {VIRTIOFSD: virtiofsd}),
        ".ssh/known_hosts": keys.known_hosts,
        **{f"python/hostfault/{each.relative_to(package)}": each for each in programs},
    }


@dataclass(frozen=True)
class GuestQemu:
    """The QEMU that runs the guest, and not the outer one."""

    program: str  # a path in the host
    build_id: str = ""  # that it must have, in hex; "": the image's, whichever that is


@dataclass(frozen=True)
class EmulatedHost:
    """Boots, saves and forks; see the module's text."""

    machine_for: Callable[[Backing], OuterSpec]  # its initramfs carries the guest
    identity: Identity
    cache: Cache
    added: Added
    guest_qemu: GuestQemu = GuestQemu(QEMU)

    @contextmanager
    def testbed(self, scenario: Scenario, folder: Path) -> Iterator[Testbed]:
        """A fork of the snapshot of this scenario's configuration."""
        with ExitStack() as stack:
            configuration = Configuration(self, scenario)
            yield configuration.fork_or_boot_anew(stack, folder)

    def boot_alone(self, scenario: Scenario, folder: Path) -> None:
        """Boot this scenario's configuration once, and save it; nothing of that is kept.

        Raises :class:`~hostfault.plumbing.errors.HostfaultError` if that fails, with no other try.
        """
        Configuration(self, scenario).boot_alone(folder)


@dataclass(frozen=True)
class Notes:
    """What is remembered of a boot for its forks."""

    phases: Mapping[str, float]  # seconds
    qemu_version: str  # of the guest's, as it said to whoever booted it
    guest_connections: Sequence[str]  # names of the logged-in clients
    probe: str  # name of the client whose command is a probe that waits


class Configuration:
    """One configuration of an emulated host: kernels, images, backing, command lines."""

    def __init__(self, host: EmulatedHost, scenario: Scenario) -> None:
        self._identity = host.identity
        self._cache = host.cache
        self._backing = BACKINGS[scenario.backing]
        self._spec = host.machine_for(self._backing)
        self._guest_qemu = host.guest_qemu
        self._guest_command = _guest_command(
            scenario, self._backing, host.added, host.guest_qemu.program, self._spec.qmp_chardev
        )
        self._policy = host.added.policy
        self._virtiofsd = host.added.virtiofsd
        self._environment = self._policy.environment(ENVIRONMENT, DIRECTORY)
        self._on_tcg = self._spec.emulates  # in the key, as a part of its command

    def fork_or_boot_anew(self, stack: ExitStack, folder: Path) -> Testbed:
        """A fork of the snapshot; one that does not load is thrown away and made anew."""
        for attempt in range(1, ATTEMPTS + 1):
            entry, fresh = self._snapshot(folder)
            try:
                with ExitStack() as inner:
                    testbed = self._fork(inner, entry, folder, fresh=fresh)
                    stack.push(inner.pop_all())
            except HostfaultError as error:
                if attempt == ATTEMPTS or isinstance(error, SetupError):
                    raise
                self._cache.discard(entry)
                log.info("the snapshot does not load, booting anew (%s)", error)
            else:
                return testbed
        raise AssertionError("unreachable")

    def _snapshot(self, folder: Path) -> tuple[Path, bool]:
        """The cache entry of the snapshot, and whether it was made just now."""
        built: list[Path] = []

        def build(entry: Path) -> None:
            built.append(entry)
            self._boot_and_save(entry, folder)

        return self._cache.obtain("machines", self._key(), build), bool(built)

    def _key(self) -> str:
        return key_of(
            {
                "layout": "8",  # of an entry, and of what is in a snapshot besides its inputs
                **self._spec.key(),
                "guest": "\n".join(self._guest_command),
                "virtiofsd": "\n".join(self._virtiofsd),  # the program is in the initramfs
                "guest's environment": json.dumps(self._environment),
            }
        )

    def _boot_and_save(self, entry: Path, folder: Path) -> None:
        """Boot; a guest that dies at its start is tried again, what would be the same again not."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._boot_once(entry, folder, folder / f"boot-{attempt}")
            except HostfaultError as error:
                same_again = isinstance(error, (SetupError, DeadlineError)) or no_space(error)
                if attempt == ATTEMPTS or same_again:
                    raise SetupError(f"{error}\nlogs: {folder}") from error
                log.info("the guest in the emulated host did not come up, trying again (%s)", error)
            else:
                return

    def boot_alone(self, folder: Path) -> None:
        """Boot and save once, whatever comes of it; ``folder`` keeps the logs."""
        entry = folder / "snapshot"
        entry.mkdir(parents=True)
        try:
            self._boot_once(entry, folder, folder / "boot")
        finally:
            shutil.rmtree(entry)

    def _boot_once(self, entry: Path, folder: Path, failed: Path) -> None:
        watch = Stopwatch()
        with ExitStack() as stack:
            directory = stack.enter_context(short_directory())
            machine = stack.enter_context(self._spec.start(directory, folder, saved=None))
            log.info("booting the host kernel %s under emulation", self._spec.kernel.release)
            machine.boot(self._deadline(120.0, "the emulated host to boot"))
            self._agent(machine, 60.0).hello()
            agent = self._agent(machine)
            watch.lap("host boot")
            stack.enter_context(self._told_if_it_fails(machine, agent, failed))
            python = dataclasses.replace(PYTHON, on_tcg=self._on_tcg, instead=self._virtiofsd)
            self._backing.start(agent, DIRECTORY, python)
            recorder = stack.enter_context(self._recorder(folder))
            stack.enter_context(told_if_the_guest_ended(recorder.events))
            launch = GuestLaunch(self._guest_command, self._environment, machine.guest_qmp)
            boot_guest(agent, self._backing, launch, recorder, self._spec.slowness)
            self._policy.prove(agent)
            prove_kernel(agent, self._spec.kernel)
            prove_qemu(agent, self._guest_qemu)
            watch.lap("guest boot")
            guest = CarriedShell(agent, GUEST_CLIENT)
            log.info("waiting for SSH of the guest")
            guest.log_in(
                self._deadline(60.0, "SSH of the guest"),
                lambda: boot.check_alive(agent, self._guest_command),
                self._spec.spares,
            )
            watch.lap("guest ssh")
            mount_backing(agent, self._backing, guest, self._spec.slowness)
            waiting = guest.open(probe.COMMAND, self._deadline(20.0, "the probe to start"))
            probe.wait_started(waiting, self._deadline(20.0, "the probe to wait for its request"))
            guest.log_in(self._deadline(60.0, "SSH of the guest"), spares=self._spec.spares)
            watch.lap("backend ready")
            agent.trace()  # so that a fork counts at once; a boot would have filled the maps
            agent.stop_child(boot.NAME)
            log.info("saving the snapshot")
            machine.save(entry / _SNAPSHOT, self._deadline(60.0, "the snapshot to be saved"))
            watch.lap("save")
        shutil.copy(folder / HOST_SERIAL, entry / HOST_SERIAL)
        notes = Notes(watch.phases, recorder.version, guest.spares, waiting.name)
        (entry / _NOTES).write_text(json.dumps(dataclasses.asdict(notes)))

    def _fork(self, stack: ExitStack, entry: Path, folder: Path, *, fresh: bool) -> Testbed:
        notes = Notes(**json.loads((entry / _NOTES).read_text()))
        watch = Stopwatch(notes.phases if fresh else None)
        shutil.copy(entry / HOST_SERIAL, folder / HOST_SERIAL)
        directory = stack.enter_context(short_directory())
        saved = entry / _SNAPSHOT
        machine = stack.enter_context(self._spec.start(directory, folder, saved=saved))
        log.info("loading the snapshot")
        machine.load(saved, self._deadline(60.0, "the snapshot to load"))
        watch.lap("restore")
        sockets = Sockets.below(directory)
        recorder = stack.enter_context(self._recorder(folder))

        recorder.go_on(machine.guest_qmp, notes.qemu_version)
        answer = recorder.ask("query-status")
        self._agent(machine, 30.0).continue_child(boot.NAME)
        agent = self._agent(machine)
        answer()
        watch.lap("reach")
        return Testbed(
            backing=self._backing,
            agent=agent,
            recorder=recorder,
            guest=CarriedShell(agent, GUEST_CLIENT, notes.guest_connections),
            probe=CarriedStream(agent, notes.probe, ready=True),
            log_in_to_guest=lambda d: log_in("guest", sockets.guest_ssh, self._identity, d),
            log_in_to_host=lambda d: log_in("host", sockets.host_ssh, self._identity, d),
            host=EmulatedLife(
                machine, sockets, self._identity, self._on_tcg, LOG_IN * self._spec.slowness
            ),
            policy=self._policy,
            watch=watch,
            cached=not fresh,
            slowness=self._spec.slowness,
        )

    def _recorder(self, folder: Path) -> Recorder:
        patience = ANSWER * self._spec.slowness
        return Recorder("guest QMP", folder / GUEST_QMP, patience=patience)

    def _agent(self, machine: OuterMachine, patience: float = AGENT_PATIENCE) -> Agent:
        """The agent in the machine; ``patience``, in seconds, is for an answer, if it is QEMU."""

        def alive() -> None:
            if machine.ended() is not None:
                raise ConnectionLostError("the emulated host is dead")

        return Agent(machine.agent, alive, patience * self._spec.slowness)

    def _deadline(self, seconds: float, what: str) -> Deadline:
        """For what takes so long in QEMU at most."""
        return Deadline(seconds * self._spec.slowness, what)

    @contextmanager
    def _told_if_it_fails(
        self, machine: OuterMachine, agent: Agent, folder: Path
    ) -> Iterator[None]:
        """The next attempt has logs of its own, so put those of this one where they stay.

        Where a connection broke, the reason may be that the whole machine came to an end.
        """
        try:
            yield
        except HostfaultError as error:
            keep_logs(agent, self._backing, self._policy, folder)
            if isinstance(error, ConnectionLostError):
                check_ended(machine)
            raise


@dataclass(frozen=True)
class EmulatedLife:
    """Of an emulated host: its emulator outlives it, and reports how it ended."""

    machine: OuterMachine
    sockets: Sockets
    identity: Identity
    on_tcg: bool
    patience: float = LOG_IN  # seconds for it to let somebody in

    def ended(self) -> Ended | None:
        """What its emulator has seen."""
        return self.machine.ended()

    def ended_silently(self, silence: str) -> Ended | None:
        """Only a host that lets nobody in any more counts as hung: an agent may die alone."""
        ended = self.machine.ended()
        if ended is not None or self._answers():
            return ended
        return self.machine.hung(f"{silence}; {AGENT_CALLS} more calls and SSH went unanswered")

    def events(self) -> Sequence[Event]:
        """What its emulator has reported."""
        return self.machine.events()

    def _answers(self) -> bool:
        """Whether the host lets somebody in who has not been there before."""
        deadline = Deadline(self.patience, "SSH of the emulated host")
        try:
            log_in("host", self.sockets.host_ssh, self.identity, deadline).close()
        except DeadlineError:
            return False
        return True


def check_ended(machine: OuterMachine) -> None:
    """Raise :class:`HostfaultError` if a machine has ended whose connections are broken.

    Its emulator closes them some time before it can be seen to have ended.
    """
    try:
        ended = poll(Deadline(DYING, "the emulated host's end"), machine.ended)
    except DeadlineError:
        return
    said = _shutdown(machine.events())
    raise HostfaultError(f"the emulated host ended while its guest booted{said}\n{ended.words}")


@contextmanager
def told_if_the_guest_ended(events: Callable[[], Sequence[Event]]) -> Iterator[None]:
    """Raise :class:`HostfaultError` that names the guest's end first if its QEMU reported one.

    What fails then, a connection or a wait, follows from it, and would not be the same again.
    """
    try:
        yield
    except HostfaultError as error:
        if said := _shutdown(events()):
            words = f"the guest ended while it booted{said}\n{error}"
            raise HostfaultError(words) from error
        raise


def _shutdown(events: Sequence[Event]) -> str:
    """The reasons that QMP gave for the end of a machine, to be put behind its name."""
    why = [str(event.data.get("reason")) for event in events if event.name == "SHUTDOWN"]
    return f" (QMP SHUTDOWN: {', '.join(why)})" if why else ""


def prove_kernel(agent: Agent, kernel: Kernel) -> None:
    """Check from inside the host that what runs is what was asked for, down to the kvm module.

    Raises :class:`SetupError` otherwise: a verdict would be about another kernel.
    """
    running = agent.hello()
    for what, wanted, found in (
        ("release", kernel.release, running["release"]),
        ("build id of kvm.ko", kernel.build_id, running["kvm_build_id"]),
    ):
        if wanted and wanted != found:
            raise SetupError(f"the host runs another kernel: its {what} is {found}, not {wanted}")


def prove_qemu(agent: Agent, qemu: GuestQemu) -> None:
    """Check that the guest's QEMU is the one that was built, by what the process runs.

    Raises :class:`SetupError` otherwise.
    """
    found = agent.program_of(boot.NAME, PROGRAM) if qemu.build_id else ""
    if found != qemu.build_id:
        raise SetupError(f"the guest runs on another QEMU: build id {found}, not {qemu.build_id}")


def _guest_command(
    scenario: Scenario, backing: Backing, added: Added, qemu: str, qmp: str
) -> list[str]:
    spec = boot.GuestSpec(
        qemu=(qemu,),
        kernel=f"{PAYLOAD}/guest-kernel",
        initramfs=f"{PAYLOAD}/guest-initramfs",
        directory=DIRECTORY,
        qmp=qmp,
        ssh_forward=f"tcp::{GUEST_SSH_PORT}-:22",
        backing=backing.qemu_options(DIRECTORY, added.policy.on_unbacked),
        append=boot.command_line(scenario, backing, added.guest_append),
        more=added.qemu_options,
    )
    return boot.command(spec, scenario.vcpus)
