"""A local host: guests run on this machine's own KVM, each test in a freshly booted one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import hostfault
from hostfault.backing import virtiofs_dax
from hostfault.case.model import GuestImage, Kernel, Qemu, Scenario
from hostfault.guest import boot as guest_machine
from hostfault.host.emulated import short_directory
from hostfault.host.qemu import environment_of
from hostfault.host.testbed import (
    ATTEMPTS,
    Place,
    Say,
    Stopwatch,
    boot_guest,
    mount_backing,
    reach_guest,
)
from hostfault.plumbing.errors import DeadlineError, HostfaultError
from hostfault.plumbing.process import spawn
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder


@dataclass
class LocalHost:
    """Starts an agent, the back-end and a guest for each test, and ends them after it."""

    qemu: Qemu
    kernel: Kernel
    image: GuestImage
    identity: Identity
    say: Say
    kind: str = "local"

    @contextmanager
    def place(self, scenario: Scenario, folder: Path) -> Iterator[Place]:
        """A freshly booted guest."""
        with ExitStack() as stack:
            yield self._boot_or_try_again(stack, scenario, folder)

    def _boot_or_try_again(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Place:
        """Boot; a guest that dies at its start is tried again, one that hangs is not."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with ExitStack() as inner:
                    place = self._boot(inner, scenario, folder)
                    stack.push(inner.pop_all())
            except HostfaultError as error:
                if attempt == ATTEMPTS or isinstance(error, DeadlineError):
                    raise
                self.say(f"the guest did not come up, trying again ({error})")
            else:
                return place
        raise AssertionError("unreachable")

    def _boot(self, stack: ExitStack, scenario: Scenario, folder: Path) -> Place:
        phases: dict[str, float] = {}
        watch = Stopwatch(phases)
        directory = stack.enter_context(short_directory())
        run = f"{directory}/run"
        agent = stack.enter_context(local_agent(Path(run), folder))
        virtiofs_dax.start(agent, run, [sys.executable], _python_env())
        recorder = stack.enter_context(Recorder("guest QMP", folder / "guest-qmp.jsonl"))
        argv = self._guest_command(scenario, directory)
        env = environment_of(self.qemu)
        self.say(f"booting a guest on this machine's KVM, kernel {self.kernel.release}")
        boot_guest(agent, argv, env, recorder, directory / "guest-qmp", self.say)
        watch.lap("guest boot")
        guest = reach_guest(directory / "guest-ssh", self.identity, self.say)
        stack.callback(guest.close)
        watch.lap("guest ssh")
        mount_backing(agent, guest, self.say)
        watch.lap("backend ready")
        return Place(agent, recorder, guest, None, phases)

    def _guest_command(self, scenario: Scenario, directory: Path) -> list[str]:
        spec = guest_machine.GuestSpec(
            qemu=self.qemu.argv,
            kernel=str(self.kernel.image),
            initramfs=str(self.image.initramfs),
            directory=f"{directory}/run",
            qmp=f"socket,path={directory}/guest-qmp,server=on,wait=off",
            ssh_forward=f"unix:{directory}/guest-ssh-:22",
            devices=tuple(virtiofs_dax.device(f"{directory}/run")),
        )
        return guest_machine.command(spec, scenario)


@contextmanager
def local_agent(directory: Path, folder: Path) -> Iterator[Agent]:
    """An agent on this machine; when it loses us it ends its children and removes its directory."""
    ours, theirs = socket.socketpair()
    argv = [
        *(sys.executable, "-m", "hostfault.agent"),
        *("--directory", str(directory), "--stdio", str(theirs.fileno())),
    ]
    env = {**os.environ, **_python_env()}
    with (
        ours,
        spawn(
            argv,
            log=folder / "agent.log",
            env=env,
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


def _python_env() -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(hostfault.__file__).parent.parent),
    }
