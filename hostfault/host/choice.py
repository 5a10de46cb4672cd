"""Which host a run gets, and why. Pure: settings and facts of the machine in, a choice out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hostfault.case.settings import ON_UNBACKED, Settings
from hostfault.plumbing.errors import MissingCapabilityError, UsageError

Kind = Literal["local", "emulated", "ssh"]
OVER_SSH = "ssh://"


@dataclass(frozen=True)
class MachineFacts:
    """What this machine is as a host; found out by :mod:`hostfault.host.preflight`."""

    why_not_kvm: str  # why no guest boots on its /dev/kvm; "" if one does
    why_not_traced: str  # why KVM's tracepoints cannot be counted; "" if they can


@dataclass(frozen=True)
class Choice:
    """A kind of host, and the reason for it in a person's words."""

    kind: Kind
    reason: str


def forced(settings: Settings) -> Choice | None:
    """The choice that follows from what was asked for alone; None if the machine decides.

    Raises :class:`UsageError` for options that contradict each other.
    """
    emulated_only = _what_needs_an_emulated_host(settings)
    over_ssh = settings.host.startswith(OVER_SSH)
    if (settings.host == "local" or over_ssh) and emulated_only:
        raise UsageError(
            f"{emulated_only} needs an emulated host: another one runs the kernel that it runs. "
            f"Leave out --host {settings.host}, or {emulated_only}"
        )
    if settings.host_console and not over_ssh:
        raise UsageError("--host-console is for a host over SSH: --host ssh://...")
    if over_ssh and settings.qemu != "image":
        raise UsageError(
            f"--qemu {settings.qemu}: over SSH the QEMU of the host image is brought along; "
            "leave --qemu out"
        )
    if over_ssh and settings.virtiofsd:
        raise UsageError("--virtiofsd is not brought to a host over SSH: leave it out")
    if settings.vmm_policy in ON_UNBACKED and settings.qemu == "image":
        raise UsageError(
            f"--vmm-policy {settings.vmm_policy} is QEMU's own, and no released QEMU has it: "
            "give --qemu 10.0+on-unbacked, or tree:PATH"
        )
    if over_ssh:
        return Choice("ssh", f"asked for with --host {settings.host}")
    if "kvm" in settings.require and (settings.host == "emulated" or emulated_only):
        raise UsageError(
            "--require kvm wants this machine's own kernel to be tested: "
            f"leave out {emulated_only or '--host emulated'}, or --require kvm"
        )
    if settings.host == "emulated":
        cpu = " --cpu intel" if settings.cpu == "intel" else ""
        choice = Choice("emulated", f"asked for with --host emulated{cpu}")
    elif emulated_only:
        choice = Choice("emulated", f"{emulated_only} boots in one")
    else:
        return None
    return _checked(choice, settings)


def choose(settings: Settings, machine: MachineFacts) -> Choice:
    """The choice on this machine.

    Without tracepoints a local host has a part of the proofs only (docs/verdicts.md), so it is
    taken on demand alone.

    Raises :class:`UsageError` or :class:`MissingCapabilityError` if it lacks what was demanded.
    """
    if choice := forced(settings):
        return choice
    missing = _missing(machine)
    if missing is None:
        return Choice("local", "a guest boots on /dev/kvm")
    if settings.host == "local" and missing.capability == "kvm":
        raise UsageError(f"--host local: {missing.reason}; --host emulated needs no KVM")
    if settings.host == "local" and "tracing" in settings.require:
        raise missing
    if settings.host == "local":
        return Choice("local", f"asked for with --host local; {missing.reason}")
    if "kvm" in settings.require:
        raise MissingCapabilityError("kvm", missing.reason)
    return _checked(Choice("emulated", missing.reason), settings)


def _what_needs_an_emulated_host(settings: Settings) -> str:
    if settings.cpu == "intel":
        return "--cpu intel"
    if settings.host_kernel:
        return "--host-kernel"
    if settings.kvm_options:
        return "--kvm-option"
    return "--host-append" if settings.host_append else ""


def _missing(machine: MachineFacts) -> MissingCapabilityError | None:
    if machine.why_not_kvm:
        return MissingCapabilityError("kvm", f"no usable /dev/kvm: {machine.why_not_kvm}")
    if machine.why_not_traced:
        return MissingCapabilityError("tracing", machine.why_not_traced)
    return None


def _checked(choice: Choice, settings: Settings) -> Choice:
    if settings.qemu != "image" and not settings.builds_qemu:
        raise UsageError(
            "--qemu needs a local host: in an emulated host the QEMU of its image runs the "
            "guests, or one that is built (NAME+SERIES, tree:PATH). Leave --qemu out, or use "
            "--host local"
        )
    return choice
