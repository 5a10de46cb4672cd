"""The machine that an emulated host is: its command line, its life, saving and loading it."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from hostfault.case.folder import HOST_QEMU_LOG, HOST_QMP, HOST_SERIAL
from hostfault.case.model import Ended, Event, HostImage, Kernel, Qemu
from hostfault.host.qemu import environment_of
from hostfault.host.scheduling import Scheduling
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import (
    DeadlineError,
    HostfaultError,
    LaunchError,
    SetupError,
    UsageError,
)
from hostfault.plumbing.process import spawn, tail
from hostfault.remote.carried import SPARES
from hostfault.remote.qmp import Line, Recorder

MEMORY = 1024  # MiB
DYING = 10.0  # seconds that a killed QEMU may take to give back its memory
VCPUS = 2  # one halves the guest's speed
GUEST_SSH_PORT = 10022  # in the host: forwarded to port 22 of the guest
AGENT_PORT = "org.hostfault.agent"  # name of a virtio-serial port; images/host/second-init
GUEST_QMP_PORT = "org.hostfault.guest-qmp"  # the same; the guest's QEMU has it open
READY = "HOSTFAULT-HOST READY"
REFUSAL = "HOSTFAULT-ERROR"  # in the lines in which its init says why it ends (images/host/init)
LOCKUP = "soft lockup"  # in what Linux's watchdog says; the hard one's needs a PMU
SERIAL_TAIL = 20000  # bytes: a panic with its backtraces

_KVM_OPTION = re.compile(r"((kvm|kvm_amd|kvm_intel)\.)?[a-z]\w*=[^\s\"']+", re.ASCII)

# Nested TCG breaks XSAVE in the guest, so nothing of xsave and avx may be on.
TCG_CPU = (
    "qemu64,+svm,+npt,+vgif,+nx,+lm,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+pclmulqdq,+aes,"
    "+rdrand,+fsgsbase,+smep,+rdtscp,+pdpe1gb"
)

# What makes it boot fast under emulation, and what makes a hang a panic that pvpanic reports.
COMMAND_LINE = (
    "console=ttyS0 no_timer_check tsc=reliable mitigations=off cryptomgr.notests "
    "random.trust_cpu=on nokaslr quiet panic=0 oops=panic softlockup_panic=1 "
    "watchdog_thresh=10 hung_task_panic=0"
)


def module_parameters(options: Sequence[str], vendor: str) -> tuple[str, ...]:
    """KVM's parameters as words of the kernel's command line, where the host's init finds them.

    A name without a dot is one of ``vendor``, the module of the CPU's. Raises :class:`UsageError`
    for what is no parameter of KVM's.
    """
    for option in options:
        if not _KVM_OPTION.fullmatch(option):
            raise UsageError(
                f"--kvm-option {option}: give NAME=VALUE for {vendor}, or kvm.NAME=VALUE"
            )
    return tuple(each if "." in each else f"{vendor}.{each}" for each in options)


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides what the machine is; part of a snapshot's key."""

    qemu: Qemu
    image: HostImage
    kernel: Kernel
    initramfs: Path
    accelerator: str  # "tcg" or "kvm"
    append: tuple[str, ...] = ()  # words that a person added to the kernel's command line
    slowness = 1.0  # by this all that is waited for was measured
    spares = SPARES
    qmp_chardev = f"pipe,path=/dev/virtio-ports/{GUEST_QMP_PORT}"

    @property
    def emulates(self) -> bool:
        """See :class:`~hostfault.host.outer.OuterSpec`."""
        return self.accelerator == "tcg"

    def key(self) -> Mapping[str, str | Path]:
        """See :class:`~hostfault.host.outer.OuterSpec`."""
        return {
            "kernel": self.kernel.image,
            "initramfs": self.initramfs,
            "disk": self.image.key,
            "qemu": self.qemu.version,
            "host": "\n".join(
                self.command(Sockets.below(Path("/")), Path("/serial"), Descriptors(0, 0, 0))
            ),
        }

    def start(
        self, directory: Path, folder: Path, *, saved: Path | None
    ) -> AbstractContextManager[Machine]:
        """See :class:`~hostfault.host.outer.OuterSpec`; it is stopped before it first runs."""
        return start(self, directory, folder, incoming=saved is not None)

    def command(self, sockets: Sockets, serial: Path, fds: Descriptors) -> list[str]:
        """The command line, up to what decides whether it boots or loads."""
        forwards = (
            f"hostfwd=unix:{sockets.host_ssh}-:22",
            f"hostfwd=unix:{sockets.guest_ssh}-:{GUEST_SSH_PORT}",
        )
        accel = "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator
        return [
            *self.qemu.argv,
            *("-name", "hostfault-host,debug-threads=on", "-no-user-config", "-nodefaults"),
            *("-machine", "q35", "-accel", accel),
            *("-cpu", TCG_CPU if self.accelerator == "tcg" else "host"),
            *("-smp", str(VCPUS), "-m", str(MEMORY)),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.initramfs)),
            *("-append", " ".join((COMMAND_LINE, *self.append))),
            *("-drive", f"file={self.image.disk},if=none,id=root,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root"),
            *("-netdev", ",".join(("user,id=net,restrict=on", *forwards))),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "pvpanic-pci", "-action", "panic=pause,shutdown=pause"),
            *("-chardev", f"file,id=serial,path={serial},append=on", "-serial", "chardev:serial"),
            *("-chardev", f"socket,id=qmp,fd={fds.qmp},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,fd={fds.agent}"),
            *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT}"),
            *("-chardev", f"socket,id=guest-qmp,fd={fds.guest_qmp}"),
            *("-device", f"virtserialport,chardev=guest-qmp,id=guest-qmp,name={GUEST_QMP_PORT}"),
            *("-display", "none", "-no-reboot", "-S"),
        ]


@dataclass(frozen=True)
class Descriptors:
    """What it has open from its start on, as file descriptors."""

    qmp: int  # listens
    agent: int  # one end of a stream
    guest_qmp: int  # the same


@dataclass(frozen=True)
class Sockets:
    """The ways in, as Unix sockets on this machine."""

    host_qmp: Path
    host_ssh: Path
    guest_ssh: Path

    @classmethod
    def below(cls, directory: Path) -> Sockets:
        """Sockets in a directory; its path must be short (unix(7): 107 bytes)."""
        return cls(*(directory / name for name in ("host-qmp", "host-ssh", "guest-ssh")))


class Serial:
    """The serial log of one run: what earlier runs left in the file is not its word."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._begin = path.stat().st_size

    def text(self) -> str:
        """The end of what this run has said."""
        with self.path.open("rb") as stream:
            stream.seek(max(self._begin, stream.seek(0, os.SEEK_END) - SERIAL_TAIL))
            return stream.read().decode(errors="replace")


class Machine:
    """A running machine; get one from :func:`start`."""

    def __init__(
        self,
        child: Popen[bytes],
        recorder: Recorder,
        serial: Serial,
        log: Path,
        agent: socket.socket,
        guest_qmp: socket.socket,
    ) -> None:
        self._child = child
        self.recorder = recorder
        self.agent = agent  # the stream to the agent in the machine
        self.guest_qmp = Line(guest_qmp, self._guest_qmp_is_closed)
        self._serial = serial
        self._log = log
        self._scheduling = Scheduling(child.pid)

    def boot(self, deadline: Deadline) -> None:
        """Let it run until its init says that it is ready.

        Raises :class:`SetupError` with the kernel's words if it does not come up.
        """
        self.recorder.execute("cont")

        def ready() -> bool | None:
            text = self._serial.text()
            deadline.saw(text[-200:])
            gone = self.ended()
            if gone is not None:
                refusals = [line for line in gone.words.splitlines() if REFUSAL in line]
                words = "\n".join(refusals) or gone.words
                raise SetupError(f"the emulated host does not come up, it ended:\n{words}")
            return True if READY in text else None

        try:
            poll(deadline, ready, interval=0.1)
        except DeadlineError as error:
            raise SetupError(f"the emulated host does not come up: {error}") from error

    def save(self, path: Path, deadline: Deadline) -> None:
        """Stop it and write it to a file, nested state included."""
        self.recorder.execute("stop")
        self._capabilities()
        self.recorder.execute("migrate", {"uri": f"file:{path}"})
        self._migrated(deadline)

    def load(self, path: Path, deadline: Deadline) -> None:
        """Become the machine that was saved there, and go on."""
        self._capabilities()
        self.recorder.execute("migrate-incoming", {"uri": f"file:{path}"})
        self._migrated(deadline)
        self.recorder.execute("cont")

    def ended(self) -> Ended | None:
        """How its kernel came to an end; None while it lives.

        Raises :class:`LaunchError` if QEMU itself came to one: that says nothing of the kernel; nor
        does a lockup that its watchdog reports while QEMU was not let run.
        """
        self._scheduling.look()
        code = self._child.poll()
        if code is not None:
            words = self._serial.text() + tail(self._log)
            raise LaunchError("the emulated host's QEMU", _argv(self._child), code, words)
        for event in self.recorder.events():
            if event.name == "GUEST_PANICKED":
                words = self._serial.text()
                if LOCKUP in words:
                    self._check_it_was_let_run("its watchdog reported a lockup")
                return Ended(None, None, words)
            if event.name == "SHUTDOWN":
                return self._shut_down(str(event.data.get("reason", "")))
        return None

    def _shut_down(self, reason: str) -> Ended:
        """What to record for a machine that QEMU has stopped for good (QAPI run-state.json).

        Reasons of the guest's own begin with "guest-"; raises :class:`HostfaultError` for another.
        Where it reset itself, which a triple fault does, only the registers can tell why.
        """
        if not reason.startswith("guest-"):
            raise HostfaultError(f"the emulated host's QEMU was told to end (SHUTDOWN: {reason})")
        registers = self._registers() if reason == "guest-reset" else ""
        return Ended(None, None, registers + self._serial.text())

    def _registers(self) -> str:
        try:
            return f"{self.recorder.monitor('info registers -a')}\n"
        except HostfaultError as error:
            return f"no registers: {error}\n"

    def _guest_qmp_is_closed(self) -> bool:
        """Whether the guest's QEMU has closed its end (event VSERPORT_CHANGE, QAPI char.json)."""
        changes = [
            event.data.get("open")
            for event in self.recorder.events()
            if event.name == "VSERPORT_CHANGE" and event.data.get("id") == "guest-qmp"
        ]
        return changes[-1:] == [False]

    def _check_it_was_let_run(self, silence: str) -> None:
        """Raise :class:`HostfaultError` with the reason if QEMU did not get to run."""
        if trouble := self._scheduling.trouble():
            raise HostfaultError(
                f"{silence}, which says nothing of the host's kernel, as its QEMU did not get to "
                f"run: {trouble}"
            )

    def hung(self, words: str) -> Ended:
        """What to record for a host that runs and does not answer.

        Raises :class:`LaunchError` if it was QEMU that came to an end: a process that is killed
        closes its sockets some time before it can be seen to have ended. Raises
        :class:`HostfaultError` if QEMU did not get to run: that is this machine's doing.
        """
        self._check_it_was_let_run(f"the emulated host does not answer ({words})")
        try:
            registers = self.recorder.monitor("info registers -a")
        except HostfaultError as error:
            registers = str(error)
            with suppress(DeadlineError):
                poll(Deadline(DYING, "the emulated host's QEMU to end"), self._child.poll)
            gone = self.ended()
            if gone is not None:
                return gone
        return Ended(None, None, f"{registers}\n{self._serial.text()}\n{words}")

    def events(self) -> Sequence[Event]:
        """QMP events of QEMU."""
        return self.recorder.events()

    def check_alive(self) -> None:
        """Raise :class:`HostfaultError` if it came to an end while it was being set up."""
        gone = self.ended()
        if gone is not None:
            raise HostfaultError(f"the emulated host died while it was set up:\n{gone.words}")

    def _capabilities(self) -> None:
        wanted = [
            {"capability": name, "state": True} for name in ("mapped-ram", "multifd", "events")
        ]
        self.recorder.execute("migrate-set-capabilities", {"capabilities": wanted})

    def _migrated(self, deadline: Deadline) -> None:
        def status() -> str | None:
            self.check_alive()
            answer = self.recorder.execute("query-migrate")
            deadline.saw(answer)
            if answer.get("status") == "failed":
                raise HostfaultError(f"migration failed: {answer.get('error-desc', answer)}")
            return "completed" if answer.get("status") == "completed" else None

        while status() is None:
            deadline.check()
            self.recorder.wait_changed(0.02)  # each step of a migration is an event


@contextmanager
def start(spec: MachineSpec, directory: Path, folder: Path, *, incoming: bool) -> Iterator[Machine]:
    """Start the machine, stopped before its first instruction, for the length of the block.

    ``directory`` (short path) gets its sockets, ``folder`` its logs. Raises
    :class:`LaunchError` if QEMU dies at once.
    """
    sockets = Sockets.below(directory)
    serial = Serial(folder / HOST_SERIAL)
    log = folder / HOST_QEMU_LOG
    with ExitStack() as stack:
        recorder = stack.enter_context(Recorder("host QMP", folder / HOST_QMP, host=True))
        listener = stack.enter_context(_listen(sockets.host_qmp))
        agent, agent_there = _stream(stack)
        guest_qmp, guest_qmp_there = _stream(stack)
        fds = Descriptors(listener.fileno(), agent_there.fileno(), guest_qmp_there.fileno())
        argv = spec.command(sockets, serial.path, fds)
        if incoming:
            argv += ["-incoming", "defer"]
        child = stack.enter_context(
            spawn(
                argv,
                log=log,
                env=environment_of(spec.qemu),
                pass_fds=dataclasses.astuple(fds),
                grace=0.0,
            )
        )
        listener.close()
        agent_there.close()
        guest_qmp_there.close()
        machine = Machine(child, recorder, serial, log, agent, guest_qmp)
        deadline = Deadline(20.0, "QMP of the emulated host")
        recorder.connect(sockets.host_qmp, deadline, machine.check_alive)
        yield machine


def _stream(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return stack.enter_context(ours), stack.enter_context(theirs)


@contextmanager
def _listen(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        yield listener


def _argv(child: Popen[bytes]) -> list[str]:
    return [str(word) for word in child.args] if isinstance(child.args, list) else []
