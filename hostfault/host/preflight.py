"""Whether this machine will do as a local host: a /dev/kvm that is of use, and tracing.

A /dev/kvm can answer every ioctl and still run no stock kernel, so nothing less than
the guest's init counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from hostfault.agent.counters import NoCounts, begin
from hostfault.agent.tracing import TRACEFS
from hostfault.case.model import GuestImage, Kernel, Qemu
from hostfault.guest.boot import COMMAND_LINE, READY
from hostfault.host.qemu import environment_of
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import DeadlineError, HostfaultError, LaunchError
from hostfault.plumbing.process import spawn, tail
from hostfault.plumbing.short_directory import short_directory
from hostfault.remote.qmp import Recorder

DEVICE = Path("/dev/kvm")
NESTED_INTEL = Path("/sys/module/kvm_intel/parameters/nested")
NESTED = (NESTED_INTEL, Path("/sys/module/kvm_amd/parameters/nested"))
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LOG = 1 << 16  # bytes that hold the whole of QEMU's log: its command and one dump of registers
PATIENCE = 60.0  # seconds for a guest to boot; real hardware takes two
USELESS = "KVM internal error"  # QEMU's words for a KVM that cannot run the guest's code
_DUMP = re.compile(r"[A-Z]\w* *=|extra data\[")  # registers, which QEMU prints below its words


class _PassingTroubleError(Exception):
    """The guest did not boot, but might another time; the message is the reason."""


def why_not(qemu: Qemu, kernel: Kernel, image: GuestImage, cache: Cache) -> str:
    """The reason why no guest boots on /dev/kvm, or "" if one does.

    What cannot change is kept per boot of this machine, guest kernel and QEMU: that a guest
    boots, or that this KVM cannot run its code. Want of memory or time is asked about anew.
    """
    if not DEVICE.exists():
        return "there is no /dev/kvm: load kvm_intel or kvm_amd, and switch on VT-x or SVM"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "/dev/kvm is there, but forbidden to this user: join the group kvm, or use sudo"
    key = key_of(
        {
            "layout": "2",  # of the entry, and which answers are kept
            "boot": BOOT_ID.read_text(),
            "kernel": kernel.image,
            "image": image.key,
            "qemu": " ".join(qemu.argv) + qemu.version,
        }
    )
    try:
        entry = cache.obtain("kvm-probe", key, lambda place: _record(place, qemu, kernel, image))
    except _PassingTroubleError as trouble:
        return str(trouble)
    return (entry / "reason").read_text()


def why_no_tracing(tracefs: Path = TRACEFS) -> str:
    """The reason why KVM's tracepoints cannot be counted on this machine, or "" if they can.

    Found out by counting them for a moment.
    """
    try:
        counters = begin(tracefs)
    except OSError as error:
        return f"KVM's tracepoints cannot be counted: {_first_line(error)}"
    counters.stop()
    if isinstance(counters, NoCounts):
        return f"KVM's tracepoints cannot be counted: {counters.why}"
    return ""


def cpu_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, str]:
    """Model name and microcode of this machine's first CPU; "" for what it does not tell."""
    told: dict[str, str] = {}
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    return told.get("model name", ""), told.get("microcode", "")


def nesting_allowed(parameters: Sequence[Path] = NESTED) -> bool:
    """Whether this machine's KVM lets a guest be a KVM host."""
    return any(path.exists() and path.read_text().strip() in ("1", "Y") for path in parameters)


def _record(place: Path, qemu: Qemu, kernel: Kernel, image: GuestImage) -> None:
    reason = _try(place, qemu, kernel, image)
    if reason and USELESS not in reason:
        raise _PassingTroubleError(reason)
    (place / "reason").write_text(reason)


def _try(place: Path, qemu: Qemu, kernel: Kernel, image: GuestImage) -> str:
    console = place / "console.log"
    log = place / "qemu.log"
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        recorder = stack.enter_context(Recorder("probe QMP", place / "qmp.jsonl"))
        argv = [
            *qemu.argv,
            *("-no-user-config", "-nodefaults", "-machine", "pc,accel=kvm", "-cpu", "host"),
            *("-m", "256", "-kernel", str(kernel.image), "-initrd", str(image.initramfs)),
            *("-append", COMMAND_LINE, "-display", "none", "-no-reboot", "-S"),
            *("-chardev", f"file,id=serial,path={console}", "-serial", "chardev:serial"),
            *("-chardev", f"socket,id=qmp,path={directory}/qmp,server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
        ]
        child = stack.enter_context(spawn(argv, log=log, env=environment_of(qemu), grace=0.0))

        def alive() -> None:
            if child.poll() is not None:
                raise LaunchError("QEMU", argv, child.poll(), tail(log))

        try:
            recorder.connect(directory / "qmp", Deadline(20.0, "QMP of the probing QEMU"), alive)
            recorder.execute("cont")
            _wait(recorder, console, Deadline(PATIENCE, "a guest to boot on /dev/kvm"), alive)
        except HostfaultError as error:
            return f"guest did not boot: {_words(tail(log, LOG)) or _first_line(error)}"
    return ""


def _wait(recorder: Recorder, console: Path, deadline: Deadline, alive: Callable[[], None]) -> None:
    while READY not in tail(console):
        alive()
        deadline.saw(tail(console, 200))
        deadline.check()
        if any(event.name == "STOP" for event in recorder.events()):
            state = recorder.execute("query-status")["status"]
            raise DeadlineError(deadline.waiting_for, deadline.elapsed(), f"run state {state}")
        recorder.wait_changed(0.1)


def _words(text: str) -> str:
    """QEMU's own reason, on one line: "KVM internal error. Suberror: 1, emulation failure"."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("$ ")]
    telling = [line for line in lines if line and "warning:" not in line and not _DUMP.match(line)]
    return ", ".join(telling[:2])[:200]


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
