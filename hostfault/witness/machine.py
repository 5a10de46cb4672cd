"""The selftest on a kernel: an emulated host is booted for it, without a guest of ours."""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import Kernel
from hostfault.host import outer_qemu
from hostfault.host.emulated import PAYLOAD
from hostfault.host.outer_qemu import MachineSpec, Sockets
from hostfault.host.qemu import find_qemu
from hostfault.image import host_image, host_initramfs
from hostfault.kernel import resolve
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError, SetupError
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import identity
from hostfault.remote.shell import Shell
from hostfault.remote.ssh import connect

log = logging.getLogger(__name__)

PROGRAM = "selftest"
BOOT_PATIENCE = 120.0  # seconds
PATIENCE = 600.0  # seconds for all of the tests: each has deadlines of its own
# What `uname -r` says, then the notes of kvm.ko in hex: the last 20 bytes are its build id.
_WHO = "uname -r; busybox od -An -v -tx1 /sys/module/kvm/notes/.note.gnu.build-id"
_ALARM = re.compile(r"BUG:|WARNING:|Oops|KASAN|UBSAN|possible circular locking|soft lockup")


@dataclass(frozen=True)
class Heard:
    """What the selftest said on one kernel."""

    release: str  # of the kernel that ran
    code: int  # the program's exit code
    output: str  # its TAP, with what it said beside
    alarms: tuple[str, ...]  # lines of the host's log that say that its kernel is broken


def run_selftest(
    name: str, program: Path, prefixes: tuple[str, ...], cache: Cache, folder: Path
) -> Heard:
    """Boot the kernel that ``name`` names and run the selftest there.

    ``prefixes`` select tests, none selects all. ``folder`` gets the logs. Raises
    :class:`HostfaultError`, with the kernel's last words if it died of the test.
    """
    log.info("looking for kernel %s", name)
    kernel = resolve(name, cache)
    spec = _spec(kernel, program, cache)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        machine = stack.enter_context(outer_qemu.start(spec, directory, folder, incoming=False))
        log.info("booting %s", kernel.release)
        machine.boot(Deadline(BOOT_PATIENCE, "the emulated host to boot"))
        deadline = Deadline(60.0, "SSH of the emulated host")
        who = identity(cache)
        shell = connect("host", Sockets.below(directory).host_ssh, who, deadline)
        stack.callback(shell.close)
        prove_kernel(_who(shell), kernel)
        log.info("running the selftest on %s", kernel.release)
        try:
            answer = shell.run(
                " ".join((f"{PAYLOAD}/{PROGRAM}", *prefixes)),
                Deadline(PATIENCE, "the selftest to end"),
            )
            kernel_log = shell.check("busybox dmesg", Deadline(20.0, "the host's log"))
        except HostfaultError as error:
            machine.check_alive()
            raise HostfaultError(f"the selftest did not end: {error}; logs: {folder}") from error
    (folder / "selftest.tap").write_text(answer.text)
    (folder / "host-dmesg.log").write_text(kernel_log)
    return Heard(kernel.release, answer.code, answer.text, alarms(kernel_log))


def _spec(kernel: Kernel, program: Path, cache: Cache) -> MachineSpec:
    image = host_image(cache)
    return MachineSpec(
        qemu=find_qemu("image", image),
        image=image,
        kernel=kernel,
        initramfs=host_initramfs(cache, kernel, image, identity(cache), {PROGRAM: program}),
        accelerator="tcg",
    )


def _who(shell: Shell) -> str:
    return shell.check(_WHO, Deadline(20.0, "the host to say which kernel it runs"))


def prove_kernel(words: str, kernel: Kernel) -> None:
    """Raise :class:`SetupError` if the host says that it runs another kernel, or another KVM."""
    release, _, notes = words.partition("\n")
    build_id = "".join(notes.split())[-40:]
    for what, wanted, found in (
        ("release", kernel.release, release.strip()),
        ("build id of kvm.ko", kernel.build_id, build_id),
    ):
        if wanted and wanted != found:
            raise SetupError(f"the host runs another kernel: its {what} is {found}, not {wanted}")


def alarms(kernel_log: str) -> tuple[str, ...]:
    """The lines of a kernel's log by which it says that something in it is wrong."""
    return tuple(line.strip() for line in kernel_log.splitlines() if _ALARM.search(line))
