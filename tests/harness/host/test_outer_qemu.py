"""How the machine of an emulated host comes up, and how it ends; QEMU only pretends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.case.model import Event
from hostfault.host import outer_qemu
from hostfault.host.outer_qemu import LOCKUP, READY, Machine, Serial, module_parameters
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    HostfaultError,
    LaunchError,
    SetupError,
    UsageError,
)

PANIC = Event("GUEST_PANICKED", 1.0, {"action": "pause"}, host=True)


class PretendedQemu:
    """A process, and its QMP."""

    args = ("qemu", "-x")
    pid = 0  # there is none

    def __init__(self, code: int | None = None, *events: Event) -> None:
        self.code = code
        self._events = events

    def poll(self) -> int | None:
        return self.code

    def execute(self, _command: str, _arguments: Mapping[str, Any] | None = None) -> Any:
        return {}

    def events(self) -> tuple[Event, ...]:
        return self._events

    def wait_for(self, name: str, deadline: Deadline) -> Event:
        for event in self._events:
            if event.name == name:
                return event
        raise deadline.error()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The serial log; what an earlier run has left is in it."""
    path = tmp_path / "serial"
    path.write_text(f"Kernel panic - not syncing: long ago\n{READY}\n")
    return path


def machine(log: Path, qemu: PretendedQemu, words: str = "") -> Machine:
    serial = Serial(log)
    with log.open("a") as stream:
        stream.write(words)
    nothing, pretended = cast("Any", None), cast("Any", qemu)
    qemu_log = log.with_name("qemu.log")
    return Machine(pretended, pretended, serial, qemu_log, nothing, nothing)


def shutdown(reason: str) -> Event:
    return Event("SHUTDOWN", 1.0, {"guest": reason.startswith("guest"), "reason": reason})


def soon() -> Deadline:
    return Deadline(0.3, "the host to boot")


def test_a_host_is_up_when_its_init_says_so(log: Path) -> None:
    machine(log, PretendedQemu(), f"{READY}\n").boot(soon())


def test_a_host_does_not_come_up_because_an_earlier_one_did(log: Path) -> None:
    with pytest.raises(SetupError, match=r"does not come up: waited 0\.\d s for the host to boot"):
        machine(log, PretendedQemu()).boot(soon())


def test_an_init_that_gives_up_says_why(log: Path) -> None:
    words = "noise\nHOSTFAULT-ERROR kvm: version magic '7.3.4' should be '7.3.5'\nmore\n"
    qemu = PretendedQemu(None, shutdown("guest-shutdown"))
    with pytest.raises(SetupError, match="HOSTFAULT-ERROR kvm: version magic") as caught:
        machine(log, qemu, words).boot(soon())
    assert "noise" not in str(caught.value)


def test_a_host_that_panics_at_its_boot_says_so(log: Path) -> None:
    with pytest.raises(SetupError, match="it ended:\nKernel panic - not syncing: VFS") as caught:
        machine(log, PretendedQemu(None, PANIC), "Kernel panic - not syncing: VFS\n").boot(soon())
    assert "long ago" not in str(caught.value)


def test_a_host_that_runs_has_not_ended(log: Path) -> None:
    assert machine(log, PretendedQemu()).ended() is None


def test_a_panic_is_the_end_of_a_host(log: Path) -> None:
    ended = machine(log, PretendedQemu(None, PANIC), "Oops: 0002\n").ended()
    assert ended is not None
    assert ended.words == "Oops: 0002\n"


def port_changes(*, is_open: bool, port: str = "guest-qmp") -> Event:
    return Event("VSERPORT_CHANGE", 1.0, {"id": port, "open": is_open}, host=True)


def test_the_line_to_the_guests_qemu_is_closed_when_qemu_closes_its_port(log: Path) -> None:
    opened, closed = port_changes(is_open=True), port_changes(is_open=False)
    another = port_changes(is_open=False, port="another")
    for events, is_closed in (
        ((), False),
        ((opened, another), False),
        ((opened, closed), True),
        ((opened, closed, opened), False),
    ):
        assert machine(log, PretendedQemu(None, *events)).guest_qmp.is_closed() is is_closed


def test_a_host_that_resets_itself_has_ended_and_its_registers_may_tell_why(log: Path) -> None:
    log.with_name("qemu.log").write_text("$ qemu -append oops=panic\n")
    qemu = RunningQemu(None, shutdown("guest-reset"))
    ended = machine(log, qemu, "the last words\n").ended()
    assert ended is not None
    assert ended.words == "CPU#0\nthe last words\n"  # QEMU's own are none of the host's


def test_a_host_that_resets_itself_has_ended_though_its_qemu_gives_no_registers(log: Path) -> None:
    ended = machine(log, DyingQemu(1, shutdown("guest-reset")), "the last words\n").ended()
    assert ended is not None
    assert ended.words == "no registers: QMP hung up\nthe last words\n"


def test_a_host_that_switches_itself_off_has_ended(log: Path) -> None:
    ended = machine(log, RunningQemu(None, shutdown("guest-shutdown")), "the last words\n").ended()
    assert ended is not None
    assert ended.words == "the last words\n"


def test_a_qemu_that_somebody_told_to_end_says_nothing_of_the_host(log: Path) -> None:
    with pytest.raises(HostfaultError, match=r"told to end .*host-signal"):
        machine(log, RunningQemu(None, shutdown("host-signal"))).ended()


@pytest.mark.parametrize(
    "qemu",
    [
        PretendedQemu(-9),
        PretendedQemu(1),
        PretendedQemu(0),
        PretendedQemu(0, shutdown("guest-reset")),
        PretendedQemu(-11, PANIC),
    ],
    ids=["killed", "failed", "unexplained", "though its machine is stopped", "crashed"],
)
def test_the_end_of_qemu_itself_says_nothing_of_the_host(log: Path, qemu: PretendedQemu) -> None:
    with pytest.raises(LaunchError, match="the emulated host's QEMU ended with code"):
        machine(log, qemu).ended()


class DyingQemu(PretendedQemu):
    """Killed a moment ago: its sockets are closed, the process is not gone yet."""

    def __init__(self, polls: int, *events: Event) -> None:
        super().__init__(None, *events)
        self._polls = polls

    def poll(self) -> int | None:
        self._polls -= 1
        return -9 if self._polls < 0 else None

    def monitor(self, _command: str) -> str:
        raise ConnectionLostError("QMP hung up")


def test_a_killed_qemu_that_is_not_gone_yet_is_no_hung_host(log: Path) -> None:
    with pytest.raises(LaunchError, match="ended with code -9"):
        machine(log, DyingQemu(polls=3)).hung("the agent hung up")


def test_a_machine_that_dies_while_it_is_set_up_is_trouble(log: Path) -> None:
    with pytest.raises(HostfaultError, match="died while it was set up"):
        machine(log, PretendedQemu(None, PANIC)).check_alive()


class NotLetRun:
    """What is known of a QEMU that another process kept from running."""

    def __init__(self, _pid: int) -> None:
        """Whichever it is."""

    def look(self) -> None:
        """Nothing changes."""

    def trouble(self) -> str:
        return "it was stopped"


class RunningQemu(PretendedQemu):
    """Answers over QMP."""

    def monitor(self, _command: str) -> str:
        return "CPU#0"


def test_a_host_that_is_silent_while_its_qemu_runs_is_hung(log: Path) -> None:
    assert machine(log, RunningQemu()).hung("no answer").words.endswith("no answer")


def test_row_12_the_silence_of_a_qemu_that_was_not_let_run_is_no_hung_host(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_qemu, "Scheduling", NotLetRun)
    with pytest.raises(HostfaultError, match="it was stopped"):
        machine(log, RunningQemu()).hung("no answer")


def test_row_12_a_lockup_while_qemu_was_not_let_run_is_no_dead_host(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"watchdog: BUG: {LOCKUP} - CPU#0 stuck for 30s!\n"
    assert machine(log, PretendedQemu(None, PANIC), words).ended() is not None
    monkeypatch.setattr(outer_qemu, "Scheduling", NotLetRun)
    with pytest.raises(HostfaultError, match="it was stopped"):
        machine(log, PretendedQemu(None, PANIC), words).ended()


def test_a_panic_of_another_cause_is_one_however_little_qemu_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serial").write_text("")
    monkeypatch.setattr(outer_qemu, "Scheduling", NotLetRun)
    oops = machine(tmp_path / "serial", PretendedQemu(None, PANIC), "Oops: 0002\n")
    assert oops.ended() is not None


def test_a_parameter_of_kvm_is_one_of_the_vendors_module_unless_it_names_another() -> None:
    given = ("npt=0", "kvm.tdp_mmu=0", "kvm_amd.avic=1")
    wanted = ("kvm_amd.npt=0", "kvm.tdp_mmu=0", "kvm_amd.avic=1")
    assert module_parameters(given, "kvm_amd") == wanted
    assert module_parameters(("ept=0",), "kvm_intel") == ("kvm_intel.ept=0",)


@pytest.mark.parametrize(
    "option", ["npt", "npt=", "=0", "other.x=1", "npt=0 init=/bin/sh", "a-b=1"]
)
def test_what_is_no_parameter_of_kvm_is_told_before_anything_boots(option: str) -> None:
    with pytest.raises(UsageError, match="--kvm-option"):
        module_parameters((option,), "kvm_amd")
