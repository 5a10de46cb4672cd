"""An emulated host: the kernel under test, booted in QEMU, with the guest inside it.

Each configuration is booted once, up to "guest reachable, backing mounted", saved whole, and
kept in the cache; every test runs in a fork of its own. The guest is stopped before the host is
saved: a running one fails to load now and then.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hostfault
from hostfault.backing import virtiofs_dax
from hostfault.case.model import Kernel, Scenario
from hostfault.guest import boot as guest_machine
from hostfault.host import outer_qemu as host_machine
from hostfault.host.outer_qemu import (
    AGENT_PORT,
    GUEST_SSH_PORT,
    QMP_PORT,
    Machine,
    MachineSpec,
    Sockets,
)
from hostfault.host.testbed import (
    ATTEMPTS,
    Place,
    Say,
    Stopwatch,
    boot_guest,
    keep_logs,
    mount_backing,
    reach_guest,
)
from hostfault.plumbing.cache import Cache, key_of, no_space
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError, SetupError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.ssh import Shell, connect

PAYLOAD = "/run/hostfault"  # in the host
DIRECTORY = "/run/hostfault/run"  # the agent's, in the host
PYTHON = "/usr/bin/python3"  # in the host
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # of what runs in the host
PYTHON_ENV = {**ENVIRONMENT, "PYTHONPATH": f"{PAYLOAD}/python", "PYTHONDONTWRITEBYTECODE": "1"}
QEMU = "/usr/bin/qemu-system-x86_64"  # in the host
SHORT = Path("/tmp")  # noqa: S108 (what we make there is ours alone: mode 0700)


def payload(guest_kernel: Path, guest_initramfs: Path) -> Mapping[str, Path]:
    """What the host's initramfs must carry, by its name below /run/hostfault."""
    package = Path(hostfault.__file__).parent
    rooms = [package / "agent", package / "daxfs"]
    programs = [package / "__init__.py", *sorted(p for room in rooms for p in room.rglob("*.py"))]
    return {
        "guest-kernel": guest_kernel,
        "guest-initramfs": guest_initramfs,
        **{f"python/hostfault/{each.relative_to(package)}": each for each in programs},
    }


@dataclass
class EmulatedHost:
    """Boots, saves and forks; see the module's text."""

    spec: MachineSpec
    identity: Identity
    cache: Cache
    say: Say
    kind: str = "emulated"

    @contextmanager
    def place(self, scenario: Scenario, folder: Path) -> Iterator[Place]:
        """A fork of the saved machine for this scenario's configuration."""
        with ExitStack() as stack:
            yield self._fork_or_boot_anew(stack, scenario, folder)

    def _fork_or_boot_anew(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Place:
        for attempt in range(1, ATTEMPTS + 1):
            saved, fresh = self._saved(scenario, folder)
            try:
                with ExitStack() as inner:
                    place = self._fork(inner, saved, folder)
                    stack.push(inner.pop_all())
            except HostfaultError as error:
                if attempt == ATTEMPTS or isinstance(error, SetupError):
                    raise
                self.cache.discard(saved)
                self.say(f"the saved machine does not load, booting anew ({error})")
            else:
                place.cached = not fresh
                if fresh:
                    place.phases.update(json.loads((saved / "phases.json").read_text()))
                return place
        raise AssertionError("unreachable")

    def _saved(self, scenario: Scenario, folder: Path) -> tuple[Path, bool]:
        """The saved machine of a configuration, and whether it was booted just now."""
        built: list[Path] = []

        def build(entry: Path) -> None:
            built.append(entry)
            self._boot_and_save(scenario, entry, folder)

        return self.cache.obtain("machines", self._key(scenario), build), bool(built)

    def _key(self, scenario: Scenario) -> str:
        anywhere = Sockets.below(Path("/"))
        return key_of(
            {
                "kernel": self.spec.kernel.image,
                "initramfs": self.spec.initramfs,
                "disk": self.spec.image.key,
                "qemu": self.spec.qemu.version,
                "host": "\n".join(self.spec.command(anywhere, Path("/serial"), 0)),
                "guest": "\n".join(_guest_command(scenario)),
            }
        )

    def _boot_and_save(self, scenario: Scenario, entry: Path, folder: Path) -> None:
        """Boot; a guest that dies at its start is tried again, what would be the same again not."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._boot_once(scenario, entry, folder, folder / f"boot-{attempt}")
            except HostfaultError as error:
                same_again = isinstance(error, (SetupError, DeadlineError)) or no_space(error)
                if attempt == ATTEMPTS or same_again:
                    raise SetupError(f"{error}\nlogs: {folder}") from error
                self.say(f"the guest in the emulated host did not come up, trying again ({error})")
            else:
                return

    def _boot_once(self, scenario: Scenario, entry: Path, folder: Path, failed: Path) -> None:
        phases: dict[str, float] = {}
        watch = Stopwatch(phases)
        with ExitStack() as stack:
            directory = stack.enter_context(short_directory())
            machine = stack.enter_context(
                host_machine.start(self.spec, directory, folder, incoming=False)
            )
            sockets = Sockets.below(directory)
            self.say(f"booting the host kernel {self.spec.kernel.release} under emulation")
            machine.boot(Deadline(120.0, "the emulated host to boot"))
            watch.lap("host boot")
            shell = self._reach(stack, sockets)
            watch.lap("host ssh")
            agent = _start_agent(stack, shell, machine)
            stack.enter_context(_logs_kept_if_it_fails(agent, failed))
            virtiofs_dax.start(agent, DIRECTORY, [PYTHON], PYTHON_ENV)
            recorder = stack.enter_context(Recorder("guest QMP", folder / "guest-qmp.jsonl"))
            boot_guest(
                agent, _guest_command(scenario), ENVIRONMENT, recorder, sockets.guest_qmp, self.say
            )
            watch.lap("guest boot")
            guest = reach_guest(sockets.guest_ssh, self.identity, self.say)
            watch.lap("guest ssh")
            mount_backing(agent, guest, self.say)
            watch.lap("backend ready")
            guest.close()
            recorder.execute("stop")
            recorder.disconnect()
            agent.close()
            shell.close()
            self.say("saving the machine")
            machine.save(entry / "ram", Deadline(60.0, "the machine to be saved"))
            watch.lap("save")
        shutil.copy(folder / "host-serial.log", entry / "host-serial.log")
        (entry / "phases.json").write_text(json.dumps(phases))

    def _fork(self, stack: ExitStack, saved: Path, folder: Path) -> Place:
        phases: dict[str, float] = {}
        watch = Stopwatch(phases)
        shutil.copy(saved / "host-serial.log", folder / "host-serial.log")
        directory = stack.enter_context(short_directory())
        machine = stack.enter_context(
            host_machine.start(self.spec, directory, folder, incoming=True)
        )
        sockets = Sockets.below(directory)
        self.say("loading the saved machine")
        machine.load(saved / "ram", Deadline(60.0, "the saved machine to load"))
        watch.lap("restore")
        recorder = stack.enter_context(Recorder("guest QMP", folder / "guest-qmp.jsonl"))
        recorder.connect(sockets.guest_qmp, Deadline(30.0, "QMP of the guest's QEMU"))
        recorder.execute("cont")
        shell = self._reach(stack, sockets)
        agent = _call_agent(stack, shell, machine)
        prove_kernel(agent, self.spec.kernel)
        watch.lap("host ssh")
        guest = reach_guest(sockets.guest_ssh, self.identity, self.say)
        stack.callback(guest.close)
        watch.lap("guest ssh")
        return Place(
            agent, recorder, guest, machine, phases, host_answers=lambda: self._answers(sockets)
        )

    def _answers(self, sockets: Sockets) -> bool:
        """Whether the host lets somebody in who has not been there before."""
        deadline = Deadline(30.0, "SSH of the emulated host")
        try:
            connect("host", sockets.host_ssh, self.identity, deadline).close()
        except DeadlineError:
            return False
        return True

    def _reach(self, stack: ExitStack, sockets: Sockets) -> Shell:
        self.say("waiting for SSH of the host")
        deadline = Deadline(60.0, "SSH of the emulated host")
        shell = connect("host", sockets.host_ssh, self.identity, deadline)
        stack.callback(shell.close)
        return shell


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


def _guest_command(scenario: Scenario) -> list[str]:
    spec = guest_machine.GuestSpec(
        qemu=(QEMU,),
        kernel=f"{PAYLOAD}/guest-kernel",
        initramfs=f"{PAYLOAD}/guest-initramfs",
        directory=DIRECTORY,
        qmp=f"socket,host=0.0.0.0,port={QMP_PORT},server=on,wait=off",
        ssh_forward=f"tcp::{GUEST_SSH_PORT}-:22",
        devices=tuple(virtiofs_dax.device(DIRECTORY)),
    )
    return guest_machine.command(spec, scenario)


@contextmanager
def _logs_kept_if_it_fails(agent: Agent, folder: Path) -> Iterator[None]:
    """The next attempt has logs of its own, so put those of this one where they stay."""
    try:
        yield
    except HostfaultError:
        keep_logs(agent, folder)
        raise


def _start_agent(stack: ExitStack, shell: Shell, machine: Machine) -> Agent:
    """Start the agent so that it outlives this connection, then call it."""
    words = " ".join(f"{name}={value}" for name, value in PYTHON_ENV.items())
    log = f"{PAYLOAD}/agent.log"
    shell.check(
        f"{words} setsid {PYTHON} -m hostfault.agent --directory {DIRECTORY} "
        f"--listen {AGENT_PORT} </dev/null >{log} 2>&1 & "
        f"until grep -q listening {log}; do kill -0 $! || {{ cat {log}; exit 1; }}; "
        "sleep 0.1; done",
        Deadline(30.0, "the agent to listen"),
    )
    return _call_agent(stack, shell, machine)


def _call_agent(stack: ExitStack, shell: Shell, machine: Machine) -> Agent:
    def alive() -> None:
        if machine.ended() is not None:
            raise ConnectionLostError("the emulated host is dead")

    deadline = Deadline(20.0, "the agent to answer")
    agent = Agent(shell.tunnel(AGENT_PORT, deadline), alive)
    stack.callback(agent.close)
    agent.hello()
    return agent


@contextmanager
def short_directory() -> Iterator[Path]:
    """A private directory with a path short enough for Unix sockets, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix=f"hostfault-{os.getpid()}-", dir=SHORT))
    try:
        yield path
    finally:
        _remove(path)


def sweep_short_directories() -> None:
    """Remove those of runs that were killed, known by the process id in their name."""
    for path in SHORT.glob("hostfault-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a tree; not with shutil, which is recursive: a guest decides how deep its share is."""
    run_tool(["rm", "-rf", "--", str(path)], what=f"removing {path}")
