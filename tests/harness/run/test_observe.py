"""Recording a case while things die around it, with pretended machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest

from hostfault.backing import GuestView
from hostfault.case.model import Ended, Event, Page, RecoveryKind, Scenario, Terms, VerdictKind
from hostfault.case.verdict import final_verdict
from hostfault.fault import Scene
from hostfault.guest.probe import Probe, parse
from hostfault.host.testbed import AGENT_CALLS, HostLife, OutlivesUs, Testbed
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import (
    ConnectionLostError,
    GuestLostError,
    HostfaultError,
    MissingCapabilityError,
)
from hostfault.run import observe as module
from hostfault.run.liveness import Liveness
from hostfault.run.observe import (
    Armed,
    calibrate,
    observe,
    require_two_dimensional_paging,
    start_tracing,
    vcpu_stats,
    wait_armed,
)

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
GFN = 0xF8008
RIP = 0x4016B5
ARMED = f'{{"step": "armed", "address": "0x7f0000008000", "rip": "{RIP:#x}"}}\n'


@pytest.fixture(autouse=True)
def _short_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOVERY_PATIENCE", 0.1)


class PretendedAgent:
    """A host on which the guest spins; it stops to answer after some samples."""

    def __init__(
        self, answers: int = 10**6, qemu_code: int | None = None, faults: int = 100
    ) -> None:
        self.events = ["kvm_page_fault"]
        self.how = "tracefs"
        self.parameters: dict[str, str] = {}
        self.gone: dict[str, int] = {}
        self.room_made = False
        self.faults = faults  # from one sample to the next
        self.answers = answers
        self.samples = 0
        self.hellos = 0
        self.qemu_code = qemu_code

    def sample(
        self,
        _name: str,
        tails: Sequence[str],
        _gfn: int,
        address: int | None = None,
        place: tuple[int, int] | None = None,
    ) -> Mapping[str, Any]:
        if self.samples >= self.answers:
            raise ConnectionLostError("waited 10.0 s for the host's agent to answer sample")
        self.samples += 1
        count = self.faults * (self.samples - 1)
        return {
            "faults": [[GFN, RIP, count]],
            "async_started": [[GFN, count]],
            "async_ready": [[GFN, count]],
            "exits": [],
            "backed": None if address is None else False,
            "gone": self.gone,
            "vcpu_seconds": 0.05 * self.samples,
            "ended": self.qemu_code if self.samples > 1 else None,
            "tails": ["" for _ in tails],
        }

    def hello(self) -> Mapping[str, Any]:
        self.hellos += 1
        if self.samples > 0 and self.samples >= self.answers:
            raise ConnectionLostError("waited 10.0 s for the host's agent to answer hello")
        return {}

    def program_of(self, *_: object) -> str:
        return "abcd"

    def trace(self, *, anew: bool) -> list[str]:
        return self.events

    def reads_kernel_log(self) -> bool:
        return True

    def counted_by(self) -> tuple[str, str]:
        return self.how, ""

    def read(self, path: str, *_: object) -> tuple[str, int]:
        if path not in self.parameters:
            raise HostfaultError(f"read failed on the host: {path}")
        return self.parameters[path], 0

    def truncate(self, _path: str, _size: int) -> int:
        """Undoing a truncation gives the page back."""
        self.room_made = True
        return 0

    def tails(self, paths: Sequence[str], _limit: int) -> list[str]:
        return ["" for _ in paths]

    def kernel_log(self) -> str:
        return ""

    def stacks(self, _name: str) -> tuple[str, ...]:
        return ()

    def byte(self, *_: object) -> None:
        return None


class PretendedQemu:
    """The QMP of a QEMU whose guest runs."""

    version = "11.1.3"

    def execute(self, command: str, *_: object) -> Any:
        return {"status": "running"} if command == "query-status" else []

    def monitor(self, _line: str) -> str:
        return "CPU#0 RIP=..."

    def events(self) -> tuple[Event, ...]:
        return ()

    def wait_changed(self, _seconds: float) -> None:
        return


class PretendedHost:
    """An emulated host of which QEMU says that it runs; a new SSH login works, or not."""

    on_tcg = True

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers

    def ended(self) -> Ended | None:
        return None

    def ended_silently(self, silence: str) -> Ended | None:
        return None if self.answers else Ended(None, None, f"{silence}\nregisters")

    def events(self) -> tuple[Event, ...]:
        return ()


class PretendedProbe:
    """A probe that is armed and never comes back."""

    def __init__(self, go: Callable[[], None] = lambda: None) -> None:
        self.go = go

    def report(self) -> Any:
        return parse(ARMED)

    def listen(self, _seconds: float) -> bool:
        return True


class PretendedGuest:
    """A guest that took a command once, and whose connection is lost since."""

    def open(self, *_: object) -> Any:
        return self

    def settimeout(self, _timeout: float) -> None:
        return

    def sendall(self, _data: bytes) -> None:
        return

    def recv(self, _size: int) -> bytes:
        raise ConnectionLostError("guest: no answer")


def case(
    agent: PretendedAgent,
    probe: PretendedProbe | None = None,
    host: HostLife | None = None,
) -> tuple[Testbed, Armed]:
    testbed = Testbed(
        cast("Any", None),
        cast("Any", agent),
        cast("Any", PretendedQemu()),
        cast("Any", PretendedGuest()),
        host=host or OutlivesUs(),
    )
    page = Page("shared/data", 0x8000, "tmpfs")
    scene = Scene(testbed.agent, testbed.guest, page, GuestView("/mnt/data", 0))
    terms = Terms(True, False, False, False, None)
    task = cast("Probe", probe or PretendedProbe())
    liveness = Liveness(testbed.guest)
    return testbed, Armed(SCENARIO, terms, scene, task, GFN, 0x7F0000000000, liveness)


def nothing(_scene: Scene) -> None:
    return


def test_a_spin_is_recorded_until_it_is_proven() -> None:
    testbed, armed = case(PretendedAgent())
    observation = observe(testbed, armed, nothing)
    verdict = final_verdict(observation)
    assert verdict.kind is VerdictKind.SPIN
    assert observation.samples[0].at <= 0
    assert observation.guest_answers is False


def test_what_comes_after_the_proof_does_not_undo_it() -> None:
    agent = PretendedAgent(answers=4)  # the sample before the touch, and those that prove it
    testbed, armed = case(agent, host=PretendedHost(answers=True))
    observation = observe(testbed, armed, nothing)
    assert len(observation.samples) == 4
    assert final_verdict(observation).kind is VerdictKind.SPIN


class HungUp:
    """The stream of a guest that has hung up."""

    def settimeout(self, _timeout: float) -> None:
        return

    def recv(self, _size: int) -> bytes:
        return b""


class DeadHost(PretendedHost):
    """An emulated host that has panicked."""

    def ended(self) -> Ended | None:
        return Ended(None, None, "panic")


@pytest.mark.parametrize(
    ("host", "trouble"),
    [
        (PretendedHost(answers=True), GuestLostError),
        (DeadHost(answers=False), ConnectionLostError),
        (OutlivesUs(), ConnectionLostError),
    ],
)
def test_a_guest_that_hangs_up_before_it_is_armed_is_lost_if_its_emulated_host_lives(
    host: HostLife, trouble: type[HostfaultError]
) -> None:
    with pytest.raises(HostfaultError) as found:
        wait_armed(Probe(cast("Any", HungUp())), host)
    assert type(found.value) is trouble


def test_a_host_that_cannot_count_is_a_missing_capability() -> None:
    agent = PretendedAgent()
    agent.events = ["kvm_async_pf_ready"]
    with pytest.raises(MissingCapabilityError, match=r"tracing: .* cannot count kvm_page_fault"):
        start_tracing(cast("Any", agent))


def test_who_may_not_count_is_told_by_what_else_it_is_judged() -> None:
    agent = PretendedAgent()
    assert start_tracing(cast("Any", agent)) == "tracefs"
    agent.events, agent.how = [], ""
    assert start_tracing(cast("Any", agent)) == ""


@pytest.mark.parametrize(("value", "good"), [("Y\n", True), ("1\n", True), ("N\n", False)])
def test_without_tracefs_two_dimensional_paging_must_be_on(value: str, good: bool) -> None:
    agent = PretendedAgent()
    agent.parameters = {"/sys/module/kvm_amd/parameters/npt": value}
    if good:
        require_two_dimensional_paging(cast("Any", agent))
    else:
        with pytest.raises(MissingCapabilityError, match="npt=N"):
            require_two_dimensional_paging(cast("Any", agent))


def test_row_14_a_tracer_that_does_not_see_the_first_touch_is_a_missing_capability() -> None:
    agent = PretendedAgent()
    calibrate(cast("Any", agent), GFN, RIP)
    calibrate(cast("Any", agent), GFN, 0)
    for gfn, rip in ((GFN + 1, RIP), (GFN, RIP + 4)):
        with pytest.raises(MissingCapabilityError, match="did not show the first touch"):
            calibrate(cast("Any", agent), gfn, rip)


def test_a_back_end_that_ends_meanwhile_is_recorded_and_is_trouble() -> None:
    agent = PretendedAgent()
    agent.gone = {"daxfs": -11}
    testbed, armed = case(agent)
    testbed = dataclasses.replace(testbed)
    observation = observe(testbed, armed, nothing)
    assert observation.back_end_ended is not None
    with pytest.raises(HostfaultError, match="the back-end ended"):
        final_verdict(observation)


def test_a_back_end_that_qemu_has_left_says_nothing() -> None:
    agent = PretendedAgent(qemu_code=-11)
    agent.gone = {"daxfs": 0}
    observation = observe(*case(agent), nothing)
    assert observation.back_end_ended is None
    assert final_verdict(observation).kind is VerdictKind.VMM_DEATH


def test_when_the_page_comes_back_and_the_task_goes_on_that_is_recorded() -> None:
    agent = PretendedAgent()

    class Retrying(PretendedProbe):
        def report(self) -> Any:
            ended = '{"step": "outcome", "kind": "value", "value": 0}\n'
            return parse(ARMED + (ended if agent.room_made else ""))

        def listen(self, _seconds: float) -> bool:
            return not agent.room_made

    testbed, armed = case(agent, Retrying())
    observation = observe(testbed, armed, nothing)
    assert final_verdict(observation).kind is VerdictKind.SPIN
    assert observation.recovery is not None
    assert observation.recovery.kind is RecoveryKind.GOES_ON


def test_a_host_that_is_lost_while_the_page_comes_back_says_nothing_of_recovery() -> None:
    class Vanishing(PretendedAgent):
        def truncate(self, _path: str, _size: int) -> int:
            raise ConnectionLostError("waited 10.0 s for the host's agent to answer truncate")

    observation = observe(*case(Vanishing()), nothing)
    assert final_verdict(observation).kind is VerdictKind.SPIN
    assert observation.recovery is None


def test_a_guest_that_an_emulated_cpu_lost_is_no_lost_connection() -> None:
    class Reset(PretendedQemu):
        def events(self) -> tuple[Event, ...]:
            return (Event("SHUTDOWN", now(), {"guest": True, "reason": "guest-reset"}),)

    def gone() -> None:
        raise ConnectionLostError("the probe is gone: Socket is closed")

    testbed, armed = case(PretendedAgent(), PretendedProbe(gone), PretendedHost(answers=True))
    testbed = dataclasses.replace(testbed, recorder=cast("Any", Reset()))
    with pytest.raises(GuestLostError):
        final_verdict(observe(testbed, armed, nothing))


def test_a_task_that_spins_on_when_the_page_is_back_is_lost() -> None:
    testbed, armed = case(PretendedAgent())
    observation = observe(testbed, armed, nothing)
    assert final_verdict(observation).kind is VerdictKind.SPIN
    assert observation.recovery is not None
    assert observation.recovery.kind is RecoveryKind.LOST


def test_an_agent_that_is_gone_from_a_host_that_lives_is_trouble_and_no_verdict() -> None:
    testbed, armed = case(PretendedAgent(answers=1), host=PretendedHost(answers=True))
    with pytest.raises(ConnectionLostError, match="sample"):
        observe(testbed, armed, nothing)


def test_an_emulated_host_that_does_not_answer_is_a_host_death() -> None:
    agent = PretendedAgent(answers=1)
    testbed, armed = case(agent, host=PretendedHost(answers=False))
    verdict = final_verdict(observe(testbed, armed, nothing))
    assert verdict.kind is VerdictKind.HOST_DEATH
    assert agent.hellos == 1 + AGENT_CALLS  # the first one asked for the release


def test_a_fault_that_kills_the_host_is_a_host_death() -> None:
    agent = PretendedAgent(answers=1)
    testbed, armed = case(agent, host=PretendedHost(answers=False))

    def wreck(_scene: Scene) -> None:
        raise ConnectionLostError("waited 10.0 s for the host's agent to answer truncate")

    observation = observe(testbed, armed, wreck)
    assert final_verdict(observation).kind is VerdictKind.HOST_DEATH
    assert observation.host_ended is not None
    assert "truncate" in observation.host_ended.words


def test_a_local_agent_that_does_not_answer_is_trouble_and_no_verdict() -> None:
    testbed, armed = case(PretendedAgent(answers=1))
    with pytest.raises(ConnectionLostError, match="sample"):
        observe(testbed, armed, nothing)


def test_a_qemu_that_is_gone_is_not_taken_for_a_lost_connection() -> None:
    def gone() -> None:
        raise ConnectionLostError("the probe is gone: Socket is closed")

    testbed, armed = case(PretendedAgent(qemu_code=-11), PretendedProbe(gone))
    verdict = final_verdict(observe(testbed, armed, nothing))
    assert verdict.kind is VerdictKind.VMM_DEATH
    assert "SIGSEGV" in verdict.summary


def test_a_probe_that_is_lost_while_all_else_lives_is_trouble_and_no_verdict() -> None:
    def gone() -> None:
        raise ConnectionLostError("the probe is gone: Socket is closed")

    testbed, armed = case(PretendedAgent(faults=0), PretendedProbe(gone))
    with pytest.raises(ConnectionLostError, match="the probe is gone"):
        observe(testbed, armed, nothing)


def test_the_statistics_of_all_vcpus_are_added_up() -> None:
    class Qemu(PretendedQemu):
        def execute(self, command: str, *_: object) -> Any:
            assert command == "query-stats"
            stats = [{"name": "pf_taken", "value": 5}, {"name": "guest_mode", "value": True}]
            return [{"stats": stats}, {"stats": [{"name": "pf_taken", "value": 7}]}]

    testbed, _ = case(PretendedAgent())
    assert vcpu_stats(dataclasses.replace(testbed, recorder=cast("Any", Qemu()))) == {
        "pf_taken": 12
    }
