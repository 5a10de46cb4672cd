"""The machine that an emulated Intel host is: Bochs, its configuration, saving and loading it.

Bochs has no channel that tells what its machine does, and no network card that a cloud kernel
drives. So there is one line into the machine for all (:mod:`hostfault.remote.line`), which takes
frames to a serial port, and from what Bochs prints; the console is another serial port. Its
display is a terminal that nobody looks at, and draws nothing: no port of this machine is opened.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen

from hostfault.agent.line import QMP_SOCKET
from hostfault.case.folder import HOST_BOCHS_LOG, HOST_SERIAL
from hostfault.case.model import Ended, Event, HostImage, Kernel
from hostfault.host.outer_qemu import (
    GUEST_SSH_PORT,
    READY,
    REFUSAL,
    Serial,
    Sockets,
)
from hostfault.host.scheduling import Scheduling
from hostfault.image.bochs import (
    INITRAMFS_AT,
    KERNEL_AT,
    PARAMETERS_AT,
    PLUGINS,
    ROM_AT,
    SHARE,
    TERMINFO,
    VGABIOS,
    Bochs,
)
from hostfault.image.bochs_boot import BootFiles
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    LaunchError,
    SetupError,
)
from hostfault.plumbing.process import spawn, tail
from hostfault.remote.forward import forwarded
from hostfault.remote.line import MachineLine, line
from hostfault.remote.qmp import Line as QmpLine

MEMORY = 1024  # MiB
SAVED_MEMORY = "memory.ram"  # Bochs's name for it
SSH_PORT = 22  # in the machine: its own server
MODEL = "corei7_haswell_4770"
CPU = f"Bochs, {MODEL}"  # in a person's words
SPEED = 100_000_000  # instructions in a second of the machine's time: about those of a real one
PANIC = re.compile(r"Kernel panic - not syncing")
TRIPLE_FAULT = "exception with no resolution"  # Bochs's word for it (cpu/exception.cc)
SWITCHED_OFF = "soft power off"  # iodev/acpi.cc

# As in outer_qemu; here a state component that XSAVES alone saves would be refused by Linux, and
# the console is let run as fast as its port can.
COMMAND_LINE = (
    "console=ttyS0,115200 no_timer_check tsc=reliable mitigations=off noxsaves cryptomgr.notests "
    "random.trust_cpu=on nokaslr quiet panic=0 oops=panic softlockup_panic=1 "
    "watchdog_thresh=10 hung_task_panic=0"
)

# What a machine has is saved in the order in which it was made, so it must be made in the same
# order again: one configuration for both. (Bochs's own, which it saves, has another order.)
_CONFIGURATION = """\
config_interface: textconfig
display_library: term
plugin_ctrl: unmapped=1, serial=1, biosdev=0, speaker=0, extfpuirq=0, parallel=0, gameport=0
memory: guest={memory}, host={memory}
romimage: file="{share}/BIOS-bochs-latest"
vgaromimage: file="{vgabios}/vgabios.bin"
{in_memory}cpu: model={model}, count=1, ips={speed}, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=utc
pci: enabled=1, chipset=i440fx
ata0: enabled=1
ata0-master: type=cdrom, path="{disk}", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="{console}"
com2: enabled=1, mode=term, dev="{line}"
port_e9_hack: enabled=1
log: -
panic: action=fatal
error: action=report, cpu0=ignore
info: action=report
debug: action=ignore
"""
_IN_MEMORY = """\
optromimage1: file="{rom}", address={rom_at:#x}
optramimage1: file="{kernel}", address={kernel_at:#x}
optramimage2: file="{parameters}", address={parameters_at:#x}
optramimage3: file="{initramfs}", address={initramfs_at:#x}
"""


@dataclass(frozen=True)
class BochsSpec:
    """Everything that decides what the machine is; see :class:`~hostfault.host.outer.OuterSpec`."""

    bochs: Bochs
    image: HostImage
    kernel: Kernel
    files: BootFiles
    emulates = True
    qmp_chardev = f"socket,path={QMP_SOCKET}"
    slowness = 5.0
    spares = 2  # as many as most cases use: a handshake takes seconds

    def key(self) -> Mapping[str, str | Path]:
        """See :class:`~hostfault.host.outer.OuterSpec`."""
        return {
            "kernel": self.files.kernel,
            "parameters": self.files.parameters,
            "rom": self.files.rom,
            "initramfs": self.files.initramfs,
            "disk": self.image.key,
            "bochs": self.bochs.key,
            "preloaded": self.bochs.preloaded,
            "host": self.configuration("", Path("/"), saved=False),
        }

    def configuration(self, line_tty: str, console: Path, *, saved: bool) -> str:
        """Bochs's configuration (bochsrc); one for what was ``saved`` has no files in memory.

        ``line_tty`` is the terminal whose far end the line's serial port is, ``console`` a file
        or FIFO.
        """
        files = self.files
        in_memory = _IN_MEMORY.format(
            rom=files.rom,
            rom_at=ROM_AT,
            kernel=files.kernel,
            kernel_at=KERNEL_AT,
            parameters=files.parameters,
            parameters_at=PARAMETERS_AT,
            initramfs=files.initramfs,
            initramfs_at=INITRAMFS_AT,
        )
        return _CONFIGURATION.format(
            memory=MEMORY,
            share=self.bochs.root / SHARE,
            vgabios=self.bochs.root / VGABIOS,
            in_memory="" if saved else in_memory,
            model=MODEL,
            speed=SPEED,
            disk=self.image.disk,
            console=console,
            line=line_tty,
        )

    @contextmanager
    def start(self, directory: Path, folder: Path, *, saved: Path | None) -> Iterator[BochsMachine]:
        """See :class:`~hostfault.host.outer.OuterSpec`; it runs at once."""
        with ExitStack() as stack:
            serial = Serial(folder / HOST_SERIAL)
            console = directory / "console"
            stack.enter_context(_copied(console, serial.path))
            master, slave = _terminal(stack)
            text = self.configuration(os.ttyname(slave), console, saved=saved is not None)
            where = _laid_out(directory, text, saved)
            control, theirs = socket.socketpair()
            stack.enter_context(control)
            read_end, write_end = os.pipe()
            stack.callback(os.close, read_end)
            log = folder / HOST_BOCHS_LOG
            try:
                child = stack.enter_context(
                    spawn(
                        [*self.bochs.argv, "-q", *where],
                        log=log,
                        env=self._environment(theirs.fileno(), saved),
                        stdout=write_end,
                        pass_fds=(theirs.fileno(),),
                        grace=0.0,
                    )
                )
            finally:
                os.close(write_end)
                theirs.close()
            carried = stack.enter_context(line(read_end, master, fork=saved is not None))
            sockets = Sockets.below(directory)
            for path, port in (
                (sockets.host_ssh, SSH_PORT),
                (sockets.guest_ssh, GUEST_SSH_PORT),
            ):
                stack.enter_context(forwarded(path, partial(carried.open, port)))
            yield BochsMachine(child, carried, control, serial, log)

    def _environment(self, control: int, saved: Path | None) -> dict[str, str]:
        root = self.bochs.root
        memory = {} if saved is None else {"HOSTFAULT_MEMORY": str(saved / SAVED_MEMORY)}
        return {
            **memory,
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C.UTF-8",
            "TERM": "linux",
            "TERMINFO": str(root / TERMINFO),
            "LTDL_LIBRARY_PATH": str(root / PLUGINS),
            "BXSHARE": str(root / SHARE),
            "HOSTFAULT_CONTROL": str(control),
        }


class BochsMachine:
    """A running machine; see :class:`~hostfault.host.outer.OuterMachine`."""

    def __init__(
        self,
        child: Popen[bytes],
        line: MachineLine,
        control: socket.socket,
        serial: Serial,
        log: Path,
    ) -> None:
        self._child, self._line, self._control = child, line, control
        self._serial, self._log = serial, log
        self._scheduling = Scheduling(child.pid)

    @property
    def agent(self) -> socket.socket:
        """The stream to the agent in the machine."""
        return self._line.agent

    @property
    def guest_qmp(self) -> QmpLine:
        """The way to QMP of the guest's QEMU."""
        return QmpLine(self._line.qmp, self._line.qmp_closed.is_set)

    def boot(self, deadline: Deadline) -> None:
        """Wait until its init says that it is ready, and its end of the line listens.

        Raises :class:`SetupError` with the kernel's words if it does not come up.
        """
        try:
            self._hear("ready", deadline)
            poll(deadline, partial(self._is_up, deadline), interval=0.2)
            self._line.wait_listening(deadline)
        except (DeadlineError, ConnectionLostError) as error:
            words = tail(self._log, 1000) if self._child.poll() is not None else ""
            raise SetupError(f"the emulated host does not come up: {error}\n{words}") from error

    def _is_up(self, deadline: Deadline) -> bool | None:
        text = self._serial.text()
        deadline.saw(text[-200:])
        gone = self.ended()
        if gone is not None or REFUSAL in text:
            refusals = [each for each in text.splitlines() if REFUSAL in each]
            words = "\n".join(refusals) or (gone.words if gone is not None else text)
            raise SetupError(f"the emulated host does not come up, it ended:\n{words}")
        return True if READY in text else None

    def save(self, path: Path, deadline: Deadline) -> None:
        """Write it to a new folder; Bochs stops the machine for that. It is of no use afterwards.

        Raises :class:`HostfaultError` if Bochs could not.
        """
        path.mkdir()
        with suppress(BrokenPipeError):  # then there is nothing to be heard, either
            self._control.sendall(f"{path}\n".encode())
        self._hear("saved", deadline)

    def load(self, path: Path, deadline: Deadline) -> None:  # noqa: ARG002 (it began with that)
        """Wait until it has become the machine that was saved, and goes on."""
        try:
            self._hear("ready", deadline)
            self._line.wait_running(deadline)
        except ConnectionLostError as error:
            raise LaunchError(
                "Bochs", self._argv(), self._child.poll(), tail(self._log, 2000)
            ) from error

    def _hear(self, wanted: str, deadline: Deadline) -> None:
        """Wait for a word of the preloaded library's (images/bochs/preload.c).

        Raises :class:`HostfaultError` for another one, :class:`ConnectionLostError` at its end.
        """
        said = b""
        while not said.endswith(b"\n"):
            deadline.check()
            self._control.settimeout(max(0.01, min(1.0, deadline.left())))
            with suppress(TimeoutError):
                data = _received(self._control)
                if not data:
                    raise ConnectionLostError(f"Bochs ended: {deadline.waiting_for}")
                said += data
        if (word := said.decode(errors="replace").strip()) != wanted:
            raise HostfaultError(f"Bochs did not do it, but said {word!r}: {deadline.waiting_for}")

    def ended(self) -> Ended | None:
        """How its kernel came to an end; None while it lives.

        Raises :class:`LaunchError` if Bochs itself did: that says nothing of the kernel.
        """
        self._scheduling.look()
        text = self._serial.text()
        code = self._child.poll()
        if code is not None:
            words = tail(self._log)
            if TRIPLE_FAULT in words or SWITCHED_OFF in words:
                return Ended(code, None, text + words)
            raise LaunchError("Bochs", self._argv(), code, text + words)
        return Ended(None, None, text) if PANIC.search(text) else None

    def hung(self, words: str) -> Ended:
        """What to record for a host that runs and does not answer.

        Raises :class:`HostfaultError` if Bochs did not get to run: that is this machine's doing.
        """
        if gone := self.ended():
            return gone
        if trouble := self._scheduling.trouble():
            raise HostfaultError(
                f"the emulated host does not answer ({words}), which says nothing of its kernel, "
                f"as Bochs did not get to run: {trouble}"
            )
        return Ended(None, None, f"{self._serial.text()}\n{words}")

    def events(self) -> Sequence[Event]:
        """Bochs reports none."""
        return ()

    def _argv(self) -> list[str]:
        args = self._child.args
        return [str(word) for word in args] if isinstance(args, list) else []


def _received(control: socket.socket) -> bytes:
    """What has come; empty if the other end is gone. Raises TimeoutError."""
    try:
        return control.recv(64)
    except ConnectionResetError:
        return b""


def _terminal(stack: ExitStack) -> tuple[int, int]:
    """The two ends of a pseudo-terminal that changes no byte; both stay open."""
    master, slave = os.openpty()
    stack.callback(os.close, master)
    stack.callback(os.close, slave)
    tty.setraw(slave)
    return master, slave


def _laid_out(directory: Path, configuration: str, saved: Path | None) -> list[str]:
    """Write the configuration where Bochs looks for it; returns options that say where.

    What was saved is shared by all forks, so one has a folder of links to it.
    """
    if saved is None:
        file = directory / "bochsrc"
        file.write_text(configuration)
        return ["-f", str(file)]
    folder = directory / "saved"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config").unlink()
    # The first line is a comment in what Bochs itself writes.
    (folder / "config").write_text(f"# hostfault\n{configuration}")
    return ["-r", str(folder)]


@contextmanager
def _copied(fifo: Path, target: Path) -> Iterator[None]:
    """Append to a file what is written to a new FIFO: Bochs would begin the file anew."""
    os.mkfifo(fifo, 0o600)
    source = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # never at its end while we have it open
    stop_reading, stop = os.pipe()
    worker = threading.Thread(target=_copy, args=(source, stop_reading, target), daemon=True)
    worker.start()
    try:
        yield
    finally:
        os.close(stop)
        worker.join(10.0)
        os.close(stop_reading)
        os.close(source)


def _copy(source: int, stop: int, target: Path) -> None:
    with target.open("ab", buffering=0) as sink:
        while True:
            ready, _, _ = select.select([source, stop], [], [])
            if source in ready:
                sink.write(os.read(source, 1 << 16))
            elif stop in ready:
                return
