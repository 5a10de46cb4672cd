"""The guest: its command line, and how it gets to "reachable, mounted, probe at hand"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hostfault.backing import GUEST_MEMORY, QEMU_CHILD, Backing, QemuOptions
from hostfault.case.model import Scenario
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import LaunchError
from hostfault.remote.agent import Agent

NAME = QEMU_CHILD
CONSOLE = "guest-console.log"  # in the agent's directory
READY = "HOSTFAULT-GUEST READY"

# What makes it boot fast under emulation; oops=panic makes pvpanic tell.
COMMAND_LINE = (
    "console=ttyS0 no_timer_check tsc=reliable mitigations=off cryptomgr.notests "
    "random.trust_cpu=on nokaslr quiet panic=0 oops=panic"
)


@dataclass(frozen=True)
class GuestSpec:
    """Everything that decides what the guest is, as paths and addresses on the host."""

    qemu: tuple[str, ...]  # start of the command line
    kernel: str
    initramfs: str
    directory: str  # the agent's
    qmp: str  # options of the QMP chardev, e.g. "socket,host=0.0.0.0,port=4444,server=on,wait=off"
    ssh_forward: str  # hostfwd rule up to "-:22"
    backing: QemuOptions
    append: str  # the guest kernel's command line
    confinement: tuple[str, ...] = ()  # options that take rights from QEMU
    more: tuple[str, ...] = ()  # options that a person added


def command_line(scenario: Scenario, backing: Backing, more: Sequence[str] = ()) -> str:
    """The guest kernel's command line; ``more`` is what a person added."""
    words = [COMMAND_LINE, "" if scenario.async_pf else "no-kvmapf", backing.guest_options, *more]
    return " ".join(filter(None, words))


def command(spec: GuestSpec, vcpus: int) -> list[str]:
    """QEMU's command line; it starts stopped, so that the recorder is there first.

    The network card is notified through an I/O port: a store to memory needs emulation, on which
    KVM from 6.14 gives up in an emulated AMD host if it has just delivered an exception
    (KVM_INTERNAL_ERROR_DELIVERY_EV, "suberror 3"): TCG leaves the type of the delivered event in
    EXITINTINFO, and svm_check_emulate_instruction() does not look at its valid bit.
    """
    return [
        *spec.qemu,
        *("-name", "hostfault-guest,debug-threads=on", "-no-user-config", "-nodefaults"),
        *("-machine", ",".join(("pc", "accel=kvm", *spec.backing.machine)), "-cpu", "host"),
        *spec.backing.memory,
        *("-smp", str(vcpus), "-m", str(GUEST_MEMORY)),
        *("-kernel", spec.kernel, "-initrd", spec.initramfs),
        *("-append", spec.append),
        *("-netdev", f"user,id=net,restrict=on,hostfwd={spec.ssh_forward}"),
        *("-device", "virtio-net-pci,netdev=net,romfile=,modern-pio-notify=on"),
        *("-device", "pvpanic-pci", "-action", "panic=pause"),
        *("-chardev", f"file,id=serial,path={spec.directory}/{CONSOLE},append=on"),
        *("-serial", "chardev:serial"),
        *("-chardev", f"{spec.qmp},id=qmp", "-mon", "chardev=qmp,mode=control"),
        *("-display", "none", "-no-reboot", "-S"),
        *spec.backing.devices,
        *spec.confinement,
        *spec.more,
    ]


def start(
    agent: Agent, argv: Sequence[str], env: Mapping[str, str], *, changes_user: bool = False
) -> None:
    """Start QEMU on the host."""
    agent.spawn(NAME, argv, env, changes_user=changes_user)


def check_alive(agent: Agent, argv: Sequence[str]) -> None:
    """Raise :class:`LaunchError` if QEMU has ended."""
    code = agent.ended(NAME)
    if code is not None:
        raise LaunchError("the guest's QEMU", argv, code, qemu_log(agent) + console(agent))


def wait_ready(agent: Agent, deadline: Deadline, alive: Callable[[], None]) -> None:
    """Wait for the guest's init to say that it is ready.

    Raises :class:`~hostfault.plumbing.errors.DeadlineError` with the end of its console.
    """

    def look() -> bool | None:
        alive()
        text = console(agent)
        deadline.saw(text[-400:])
        return True if READY in text else None

    poll(deadline, look, interval=0.2)


def logs(agent: Agent) -> tuple[str, str]:
    """The ends of the guest's console, and of what its QEMU printed."""
    console, qemu = agent.tails([CONSOLE, f"{NAME}.log"], 20000)
    return console, qemu


def console(agent: Agent) -> str:
    """The end of the guest's console."""
    return agent.read(CONSOLE, offset=-20000)[0]


def qemu_log(agent: Agent) -> str:
    """What the guest's QEMU printed."""
    return agent.read(f"{NAME}.log", offset=-8000)[0]
