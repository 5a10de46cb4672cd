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
from hostfault.case.folder import AGENT_LOG
from hostfault.case.model import GuestImage, Kernel, Qemu, Scenario
from hostfault.host.qemu import environment_of
from hostfault.host.site import GuestPlan, Site, boot_or_try_again, bring_up
from hostfault.host.testbed import Added, OutlivesUs, Stopwatch, Testbed
from hostfault.plumbing.errors import HostfaultError
from hostfault.plumbing.process import spawn
from hostfault.plumbing.short_directory import short_directory
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent

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
            yield boot_or_try_again(stack, lambda inner: self._boot(inner, scenario, folder))

    def _boot(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Testbed:
        backing = BACKINGS[scenario.backing]
        backing.require(self.qemu, environment_of(self.qemu))
        directory = stack.enter_context(short_directory())
        site = Site(
            agent=stack.enter_context(local_agent(directory / "run", folder)),
            directory=f"{directory}/run",
            python=OUR_PYTHON,
            qemu=self.qemu.argv,
            kernel=str(self.kernel.image),
            initramfs=str(self.image_for(backing).initramfs),
            sockets=str(directory),
            reach=directory,
            life=OutlivesUs(),
            policy=self.added.policy,
        )
        log.info("booting a guest on this machine, kernel %s", self.kernel.release)
        plan = GuestPlan(scenario, self.qemu, self.identity, self.added, folder)
        return bring_up(stack, site, plan, Stopwatch())


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
