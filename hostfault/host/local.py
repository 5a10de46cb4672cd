"""A local host: guests run on this machine's own KVM, each case in a freshly booted one."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hostfault
from hostfault.backing import BACKINGS, Backing, Python
from hostfault.case.folder import AGENT_LOG, GUEST_QMP
from hostfault.case.model import GuestImage, Kernel, Qemu, Scenario
from hostfault.guest import boot
from hostfault.host.qemu import environment_of
from hostfault.host.testbed import (
    ATTEMPTS,
    Added,
    GuestLaunch,
    Stopwatch,
    Testbed,
    boot_guest,
    mount_backing,
)
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import DeadlineError, HostfaultError
from hostfault.plumbing.process import spawn
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.ssh import connect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalHost:
    """Starts an agent, the backing and a guest for each case, and ends them after it."""

    qemu: Qemu
    kernel: Kernel  # of the guest
    image_for: Callable[[Backing], GuestImage]
    identity: Identity
    added: Added

    @contextmanager
    def testbed(self, scenario: Scenario, folder: Path) -> Iterator[Testbed]:
        """A freshly booted guest."""
        with ExitStack() as stack:
            yield self._boot_or_try_again(stack, scenario, folder)

    def _boot_or_try_again(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Testbed:
        """Boot; a guest that dies at its start is tried again, one that hangs is not."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with ExitStack() as inner:
                    testbed = self._boot(inner, scenario, folder)
                    stack.push(inner.pop_all())
            except HostfaultError as error:
                if attempt == ATTEMPTS or isinstance(error, DeadlineError):
                    raise
                log.info("the guest did not come up, trying again (%s)", error)
            else:
                return testbed
        raise AssertionError("unreachable")

    def _boot(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Testbed:
        watch = Stopwatch()
        backing = BACKINGS[scenario.backing]
        backing.require(self.qemu, environment_of(self.qemu))
        directory = stack.enter_context(short_directory())
        agent = stack.enter_context(local_agent(directory / "run", folder))
        backing.start(agent, f"{directory}/run", OUR_PYTHON)
        recorder = stack.enter_context(Recorder("guest QMP", folder / GUEST_QMP))
        argv = self._guest_command(scenario, backing, directory)
        policy = self.added.policy
        environment = policy.environment(environment_of(self.qemu), f"{directory}/run")
        launch = GuestLaunch(argv, environment, directory / "guest-qmp")
        log.info("booting a guest on this machine's KVM, kernel %s", self.kernel.release)
        boot_guest(agent, backing, launch, recorder)
        policy.prove(agent)
        watch.lap("guest boot")
        log.info("waiting for SSH of the guest")
        deadline = Deadline(60.0, "SSH of the guest")
        guest = connect("guest", directory / "guest-ssh", self.identity, deadline)
        stack.callback(guest.close)
        watch.lap("guest ssh")
        mount_backing(agent, backing, guest)
        watch.lap("backend ready")
        return Testbed(
            backing=backing,
            agent=agent,
            recorder=recorder,
            guest=guest,
            log_in_to_guest=lambda d: connect("guest", directory / "guest-ssh", self.identity, d),
            policy=policy,
            watch=watch,
        )

    def _guest_command(self, scenario: Scenario, backing: Backing, directory: Path) -> list[str]:
        spec = boot.GuestSpec(
            qemu=self.qemu.argv,
            kernel=str(self.kernel.image),
            initramfs=str(self.image_for(backing).initramfs),
            directory=f"{directory}/run",
            qmp=f"socket,path={directory}/guest-qmp,server=on,wait=off",
            ssh_forward=f"unix:{directory}/guest-ssh-:22",
            backing=backing.qemu_options(f"{directory}/run"),
            append=boot.command_line(scenario, backing, self.added.guest_append),
            more=self.added.qemu_options,
        )
        return boot.command(spec, scenario.vcpus)


@contextmanager
def local_agent(directory: Path, folder: Path) -> Iterator[Agent]:
    """An agent on this machine; when it loses us it ends its children and removes its directory."""
    ours, theirs = socket.socketpair()
    argv = [
        *(*OUR_PYTHON.argv, "-m", "hostfault.agent"),
        *("--directory", str(directory), "--stdio", str(theirs.fileno())),
    ]
    with (
        ours,
        spawn(
            argv,
            log=folder / AGENT_LOG,
            env=OUR_PYTHON.env,
            pass_fds=(theirs.fileno(),),
            grace=15.0,
            death_signal="TERM",  # its counts in the kernel outlive it unless it removes them
        ) as child,
    ):
        theirs.close()
        agent = Agent(ours)
        agent.hello()
        try:
            yield agent
        finally:
            agent.close()
            _wait_for_clean_end(child)


def _wait_for_clean_end(child: subprocess.Popen[bytes]) -> None:
    try:
        child.wait(30.0)
    except subprocess.TimeoutExpired as error:
        raise HostfaultError("the agent did not end its children within 30 s") from error


# -P: no module of the directory that somebody calls us in, such as a kernel tree under bisection.
OUR_PYTHON = Python(
    (sys.executable, "-P"),
    {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(hostfault.__file__).parent.parent),
    },
)
