"""Where a guest is booted afresh for each case: on this machine, or on another one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from hostfault.backing import BACKINGS, Python
from hostfault.case.folder import GUEST_QMP
from hostfault.case.model import Qemu, Scenario
from hostfault.guest import boot
from hostfault.guest.policy import VmmPolicy
from hostfault.host.qemu import confinement, environment_of
from hostfault.host.testbed import (
    ATTEMPTS,
    Added,
    GuestLaunch,
    HostLife,
    Stopwatch,
    Testbed,
    boot_guest,
    log_in,
    mount_backing,
)
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    DeadlineError,
    HostfaultError,
    MissingCapabilityError,
    SetupError,
)
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder

log = logging.getLogger(__name__)

QMP, SSH = "guest-qmp", "guest-ssh"  # sockets that QEMU makes


@dataclass(frozen=True)
class Site:
    """A place for one guest, with its agent; paths are the host's, but for ``reach``."""

    agent: Agent
    directory: str  # the agent's
    python: Python
    qemu: tuple[str, ...]  # start of its command line
    kernel: str
    initramfs: str
    sockets: str  # a directory for sockets
    reach: Path  # a directory of this machine that has the same sockets
    life: HostLife
    policy: VmmPolicy  # with its library as the host has it


def boot_or_try_again(stack: ExitStack, boot_once: Callable[[ExitStack], Testbed]) -> Testbed:
    """Boot; a guest that dies at its start is tried again, one that hangs is not."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with ExitStack() as inner:
                testbed = boot_once(inner)
                stack.push(inner.pop_all())
        except HostfaultError as error:
            same_again = isinstance(error, (DeadlineError, MissingCapabilityError, SetupError))
            if attempt == ATTEMPTS or same_again:
                raise
            log.info("the guest did not come up, trying again (%s)", error)
        else:
            return testbed
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class GuestPlan:
    """What is the same of a guest wherever it boots."""

    scenario: Scenario
    qemu: Qemu  # as this machine runs it
    identity: Identity
    added: Added
    folder: Path  # gets the transcripts


def bring_up(stack: ExitStack, site: Site, plan: GuestPlan, watch: Stopwatch) -> Testbed:
    """A guest at a site, booted and with its backing mounted; ``stack`` ends it.

    Where the agent is root, QEMU and the back-end become users that nobody is.
    """
    backing, agent = BACKINGS[plan.scenario.backing], site.agent
    others = [] if plan.added.keep_user else agent.other_users(2)
    qemu_user, backing_user = others or (None, None)
    python = replace(site.python, user=backing_user, instead=plan.added.virtiofsd)
    if plan.added.share_size is not None:
        python = replace(python, share_size=plan.added.share_size)
    backing.start(agent, site.directory, python)
    recorder = stack.enter_context(Recorder("guest QMP", plan.folder / GUEST_QMP))
    launch = GuestLaunch(
        _command(site, plan, qemu_user),
        site.policy.environment(environment_of(plan.qemu), site.directory),
        site.reach / QMP,
        changes_user=qemu_user is not None,
    )
    boot_guest(agent, backing, launch, recorder)
    site.policy.prove(agent)
    watch.lap("guest boot")
    log.info("waiting for SSH of the guest")
    ssh = site.reach / SSH
    guest = log_in("guest", ssh, plan.identity, Deadline(60.0, "SSH of the guest"))
    stack.callback(guest.close)
    watch.lap("guest ssh")
    mount_backing(agent, backing, guest)
    watch.lap("backend ready")
    return Testbed(
        backing=backing,
        agent=agent,
        recorder=recorder,
        guest=guest,
        log_in_to_guest=lambda d: log_in("guest", ssh, plan.identity, d),
        host=site.life,
        policy=site.policy,
        watch=watch,
    )


def _command(site: Site, plan: GuestPlan, user: int | None) -> list[str]:
    backing = BACKINGS[plan.scenario.backing]
    spec = boot.GuestSpec(
        qemu=site.qemu,
        kernel=site.kernel,
        initramfs=site.initramfs,
        directory=site.directory,
        qmp=f"socket,path={site.sockets}/{QMP},server=on,wait=off",
        ssh_forward=f"unix:{site.sockets}/{SSH}-:22",
        backing=backing.qemu_options(site.directory, site.policy.on_unbacked),
        append=boot.command_line(plan.scenario, backing, plan.added.guest_append),
        confinement=confinement(plan.qemu, user),
        more=plan.added.qemu_options,
    )
    return boot.command(spec, plan.scenario.vcpus)
