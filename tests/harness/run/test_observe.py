"""Recording a case while things die around it, with pretended machines."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from case_stand_in import (
    ARMED,
    PretendedAgent,
    PretendedHost,
    PretendedProbe,
    PretendedQemu,
    case,
)

from hostfault.case.model import Event, RecoveryKind, VerdictKind
from hostfault.case.verdict import final_verdict
from hostfault.fault import Scene
from hostfault.guest.probe import parse
from hostfault.host.testbed import AGENT_CALLS
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import ConnectionLostError, GuestLostError, HostfaultError
from hostfault.run import observe as module
from hostfault.run.observe import observe


@pytest.fixture(autouse=True)
def _short_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECOVERY_PATIENCE", 0.1)


def nothing(_scene: Scene) -> None:
    return


def test_a_spin_is_recorded_until_it_is_proven() -> None:
    testbed, armed = case(PretendedAgent())
    observation = observe(testbed, armed, nothing)
    verdict = final_verdict(observation)
    assert verdict.kind is VerdictKind.SPIN
    assert observation.samples[0].at <= 0
    assert observation.guest_answers is False


def test_the_registers_of_a_guest_that_runs_a_guest_are_left_alone() -> None:
    testbed, armed = case(PretendedAgent())
    assert observe(testbed, armed, nothing).registers
    nested = dataclasses.replace(armed, terms=dataclasses.replace(armed.terms, nested=True))
    testbed = dataclasses.replace(testbed, agent=cast("Any", PretendedAgent()))
    observation = observe(testbed, nested, nothing)
    assert final_verdict(observation).kind is VerdictKind.SPIN
    assert observation.registers == ""


def test_what_comes_after_the_proof_does_not_undo_it() -> None:
    agent = PretendedAgent(answers=4)  # the sample before the touch, and those that prove it
    testbed, armed = case(agent, host=PretendedHost(answers=True))
    observation = observe(testbed, armed, nothing)
    assert len(observation.samples) == 4
    assert final_verdict(observation).kind is VerdictKind.SPIN


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


@pytest.mark.parametrize(("slowness", "kind"), [(1.0, "lost"), (1000.0, "goes-on")])
def test_a_slow_host_has_longer_to_go_on(
    slowness: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECOVERY_PATIENCE", 0.005)
    agent = PretendedAgent()
    began: list[float] = []

    class Late(PretendedProbe):
        """Goes on a while after the page is back."""

        def report(self) -> Any:
            ended = '{"step": "outcome", "kind": "value", "value": 0}\n'
            return parse(ARMED + (ended if began and now() - began[0] > 0.1 else ""))

        def listen(self, _seconds: float) -> bool:
            if agent.room_made and not began:
                began.append(now())
            return not (began and now() - began[0] > 0.1)

    testbed, armed = case(agent, Late())
    observation = observe(dataclasses.replace(testbed, slowness=slowness), armed, nothing)
    assert observation.recovery is not None
    assert observation.recovery.kind == kind


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
    assert agent.hellos == AGENT_CALLS


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
