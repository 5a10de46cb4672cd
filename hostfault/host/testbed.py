"""A guest that runs on a host, ready for one test: what every kind of host hands on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from hostfault.backing import virtiofs_dax
from hostfault.case.model import Ended, Scenario
from hostfault.guest import boot as guest_machine
from hostfault.host.outer_qemu import Machine
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.ssh import Shell, connect

AGENT_CALLS = 3  # unanswered ones after which the host itself is asked
ATTEMPTS = 3  # at a boot: in an emulated host a guest dies at its start once in about 30
BOOT_PATIENCE = 120.0  # seconds; an emulated guest takes 5 to 8
Say = Callable[[str], None]


@dataclass
class Place:
    """A guest with its backing mounted, and every way to see it."""

    agent: Agent
    recorder: Recorder  # QMP of the guest's QEMU
    guest: Shell
    machine: Machine | None  # of an emulated host
    phases: dict[str, float] = field(default_factory=dict)  # seconds, by name
    cached: bool = False  # forked from a saved machine
    host_answers: Callable[[], bool] = lambda: True  # asked past the agent; a local one does

    def host_ended(self) -> Ended | None:
        """How the host itself came to an end; a local host outlives us, or we are not asked."""
        return self.machine.ended() if self.machine else None

    def host_ended_silently(self, silence: str) -> Ended | None:
        """The same of a host whose agent is gone; ``silence`` says what went unanswered.

        Only a host that lets nobody in any more counts as hung: an agent may die alone.
        """
        ended = self.host_ended()
        if ended is not None or self.machine is None or self.host_answers():
            return ended
        return self.machine.hung(f"{silence}; {AGENT_CALLS} more calls and SSH went unanswered")

    def agent_answers(self) -> bool:
        """Whether the host's agent answers one of a few calls."""
        for _ in range(AGENT_CALLS):
            try:
                self.agent.hello()
            except ConnectionLostError:
                continue
            return True
        return False


class Host(Protocol):
    """Where the KVM under test runs. ``ssh://`` would be a third one."""

    kind: str

    def place(self, scenario: Scenario, folder: Path) -> AbstractContextManager[Place]:
        """A fresh guest for one test; ``folder`` gets its logs."""
        ...


class Stopwatch:
    """Notes how long each phase took."""

    def __init__(self, phases: dict[str, float]) -> None:
        self._phases = phases
        self._last = now()

    def lap(self, name: str) -> None:
        """Book the seconds since the last lap under ``name``."""
        at = now()
        self._phases[name] = self._phases.get(name, 0.0) + at - self._last
        self._last = at


def boot_guest(
    agent: Agent, argv: list[str], env: dict[str, str], recorder: Recorder, qmp: Path, say: Say
) -> None:
    """Start the guest's QEMU, record from before its first instruction, wait for its init."""
    guest_machine.start(agent, argv, env)

    def alive() -> None:
        virtiofs_dax.check_alive(agent)
        _check_running(agent, recorder)
        guest_machine.check_alive(agent, argv)

    recorder.connect(qmp, Deadline(30.0, "QMP of the guest's QEMU"), alive)
    recorder.execute("cont")
    say("waiting for the guest to boot")
    guest_machine.wait_ready(agent, Deadline(BOOT_PATIENCE, "the guest to boot"), alive)


def _check_running(agent: Agent, recorder: Recorder) -> None:
    """Raise :class:`HostfaultError` if the guest stopped by itself."""
    if any(event.name == "STOP" for event in recorder.events()):
        state = recorder.execute("query-status")["status"]
        words = guest_machine.qemu_log(agent) + guest_machine.console(agent)
        raise HostfaultError(f"the guest stopped while it booted, run state {state}:\n{words}")


def reach_guest(path: Path, identity: Identity, say: Say) -> Shell:
    """Log in to the guest."""
    say("waiting for SSH of the guest")
    return connect("guest", path, identity, Deadline(60.0, "SSH of the guest"))


def mount_backing(agent: Agent, guest: Shell, say: Say) -> None:
    """Mount the backing in the guest, and prove that it is what it should be."""
    say("mounting the backing in the guest")
    virtiofs_dax.mount(agent, guest, Deadline(30.0, "the guest to mount the backing"))


def keep_logs(agent: Agent, folder: Path) -> None:
    """Fetch the logs that lie on the host, however the case went; a dead host gives none."""
    sources = {
        "guest-console.log": guest_machine.console,
        "guest-qemu.log": guest_machine.qemu_log,
        "daxfs.jsonl": virtiofs_dax.log,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        try:
            text = source(agent)
        except HostfaultError as error:
            text = f"not to be had: {error}"
        (folder / name).write_text(text)
