"""Inject the fault of an armed case, and record everything until a verdict is proven."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hostfault import __version__
from hostfault.access import ACCESSES
from hostfault.case.counting import KERNEL_SPACE
from hostfault.case.model import (
    Ended,
    Event,
    FrameFaults,
    Observation,
    Recovery,
    RecoveryKind,
    Sample,
    UserspaceExit,
    VcpuPlace,
    VerdictKind,
)
from hostfault.case.statistics import why_unprovable
from hostfault.case.trouble import trouble
from hostfault.case.verdict import judge
from hostfault.fault import FAULTS, Fault, Scene
from hostfault.guest import boot, policy
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import (
    ConnectionLostError,
    HostfaultError,
)
from hostfault.run.arm import Armed, ask_vcpu_stats
from hostfault.run.place import place_of

log = logging.getLogger(__name__)

# In seconds, and longer where the host is slow (Testbed.deadline).
RECOVERY_PATIENCE = 10.0  # seconds from undoing a fault until "it does not recover"
PATIENCE = 30.0  # seconds from the touch until "nothing is proven" is an answer too
ENDING = 3.0  # seconds that a process may take to end, once its connections are gone
INTERVAL = 0.01  # seconds between samples
TAILS = (boot.CONSOLE, f"{boot.NAME}.log")


def observe(
    testbed: Testbed,
    armed: Armed,
    inject: Callable[[Scene], None] | None = None,
    *,
    undo: bool = True,
) -> Observation:
    """Inject the fault, give the word, and record until the verdict is proven or time is over.

    ``undo`` the fault then, and record what follows.
    """
    recording = Recording(testbed, armed)
    recording.begin()
    recording.inject(inject or FAULTS[armed.scenario.fault].inject)
    recording.touch()
    deadline = testbed.deadline(PATIENCE, "a verdict")
    while not recording.is_over and not deadline.passed():
        recording.step()
    recording.finish()
    if undo:
        recording.reverse(FAULTS[armed.scenario.fault])
    return recording.observation


class Recording:
    """One case while it runs: samples, events, and the ends of things."""

    def __init__(self, testbed: Testbed, armed: Armed) -> None:
        self._testbed = testbed
        self._scene = armed.scene
        self._task = armed.task
        self._liveness = armed.liveness
        self._address = armed.address
        self._taken = False  # whether the host has been asked to take the page away
        self._started = now()
        self._touched = 0.0
        self._so_far = Observation(
            scenario=armed.scenario,
            terms=armed.terms,
            page=armed.scene.page,
            expected_gfn=armed.gfn,
            waited=0.0,
            probe=armed.task.report(),
            host_release=armed.running.host_release,
            kvm_build_id=armed.running.kvm_build_id,
            version=__version__,
            on_tcg=testbed.host.on_tcg,
            vmm_policy=testbed.policy.name,
            qemu_version=testbed.recorder.version,
            qemu_build_id=armed.running.qemu_build_id,
            counted_by=armed.counted_by,
            seed=armed.seed,
            huge_mapped=armed.huge_mapped,
            host_log_read=armed.running.host_log_read,
        )

    @property
    def observation(self) -> Observation:
        """What was recorded so far."""
        return self._so_far

    @property
    def is_over(self) -> bool:
        """Whether more samples can change nothing: proven, or something needed has ended."""
        seen = self._so_far
        return bool(trouble(seen) or seen.qemu_ended or judge(seen) or why_unprovable(seen))

    def begin(self) -> None:
        """Take the sample that everything is compared with."""
        self._started = self._touched = now()
        self._step_or_end(self._sample)

    def inject(self, fault: Callable[[Scene], None]) -> None:
        """Do to the host what the case is about; the host may not survive it."""
        self._step_or_end(lambda: fault(self._scene))
        self._taken = self._so_far.terms.takes_page
        if ACCESSES[self._so_far.scenario.access].amid_others and self._so_far.host_ended is None:
            self._step_or_end(self._sample)  # what others met meanwhile is not of the access

    def touch(self) -> None:
        """Give the word; from here on time is counted."""
        self._touched = now()
        self._so_far = dataclasses.replace(
            self._so_far,
            samples=tuple(
                dataclasses.replace(sample, at=self._started - self._touched)
                for sample in self._so_far.samples
            ),
        )
        if self._so_far.host_ended is None:
            self._step_or_end(self._task.go)
            self._step_or_end(self._liveness.ask)

    def step(self) -> None:
        """Wait a little for the probe or an event, then look at everything."""
        self._step_or_end(self._look)

    def do(self, work: Callable[[], None]) -> None:
        """Do something to the machines while they are observed; they may not survive it."""
        self._step_or_end(work)

    def finish(self) -> None:
        """Add what is only asked for at the end."""
        if self._so_far.host_ended is None:
            self._step_or_end(self._last_look)

    def reverse(self, fault: Fault) -> None:
        """Undo the fault and see what follows; the verdict stands, whatever that is.

        Only for an access that has not ended: the page's return must end it.
        """
        seen = self._so_far
        if seen.probe.outcome is not None or seen.host_ended or seen.qemu_ended:
            return
        verdict = judge(seen)
        if verdict is not None and verdict.kind is VerdictKind.GUEST_DEATH:
            return  # whoever is dead does not go on
        if not fault.undoable:
            words = f"{fault.name} cannot be undone"
            self._so_far = dataclasses.replace(
                self._so_far, recovery=Recovery(RecoveryKind.NOT_UNDOABLE, words)
            )
            return
        try:
            fault.undo(self._scene)
            self._so_far = dataclasses.replace(self._so_far, recovery=self._watch_recovery())
        except ConnectionLostError as error:  # then nothing is known of it
            log.info("what follows when the fault is undone is not known: %s", error)

    def _watch_recovery(self) -> Recovery:
        """Wait for the access to end; a VM that was stopped is told to go on first."""
        recorder, began = self._testbed.recorder, now()
        kind = RecoveryKind.GOES_ON
        state = str(recorder.execute("query-status")["status"])
        if state != "running":
            kind = RecoveryKind.GOES_ON_AFTER_CONT
            try:
                recorder.execute("cont")
            except ConnectionLostError:
                raise
            except HostfaultError as refused:  # as after an internal error
                return Recovery(RecoveryKind.LOST, str(refused).splitlines()[0], now() - began)
        what = "the access to end, now that the page is back"
        deadline = self._testbed.deadline(RECOVERY_PATIENCE, what)
        while self._task.listen(INTERVAL) and not deadline.passed():
            deadline.saw(self._task.report().steps[-1])
        outcome = self._task.report().outcome
        if outcome is None:
            return Recovery(RecoveryKind.LOST, str(deadline.error()), now() - began)
        seconds, held = now() - began, self._byte_in_the_file()
        return Recovery(kind, f"{outcome.kind} {outcome.value:#x}", seconds, held)

    def _look(self) -> None:
        if not self._task.listen(INTERVAL):
            self._testbed.recorder.wait_changed(INTERVAL)
        self._sample()
        if self._task.report().outcome is not None:
            self._so_far = dataclasses.replace(self._so_far, stored_byte=self._byte_in_the_file())

    def _last_look(self) -> None:
        testbed = self._testbed
        registers = self._ask_registers()
        console, qemu_log = boot.logs(testbed.agent)
        self._so_far = dataclasses.replace(
            self._so_far,
            registers=_ask(registers, ""),
            guest_console=console,
            qemu_log=qemu_log,
            host_log=testbed.agent.kernel_log(),
            stored_byte=self._byte_in_the_file(),
        )
        if self._so_far.qemu_ended is None:
            self._so_far = dataclasses.replace(self._so_far, guest_answers=self._guest_answers())

    def _ask_registers(self) -> Callable[[], str]:
        """Ask for them; not in a guest that runs a guest of its own.

        QEMU hands a vCPU's state back to KVM then, and an asynchronous page fault that was about to
        leave the guest's guest gets into it in place of that (KVM_SET_VCPU_EVENTS of Linux 7.3).
        """
        if self._so_far.terms.nested:
            return lambda: ""
        return self._testbed.recorder.ask_monitor("info registers -a")

    def _byte_in_the_file(self) -> int | None:
        """What the page holds, as the host has it."""
        agent, page = self._testbed.agent, self._scene.page
        if page.private and self._so_far.terms.writes and self._address is not None:
            return agent.peek(boot.NAME, self._address)
        return agent.byte(page.path, page.offset)

    def _guest_answers(self) -> bool | None:
        if self._so_far.samples[-1].run_state != "running":
            return None
        return self._liveness.answers()

    def _step_or_end(self, work: Callable[[], None]) -> None:
        """Do something that needs the machines; if one of them is what is gone, record that."""
        try:
            work()
        except ConnectionLostError as error:
            self._find_out_who_is_gone(error)
        self._so_far = dataclasses.replace(
            self._so_far,
            waited=now() - self._touched,
            probe=self._task.report(),
            events=tuple(self._events()),
        )

    def _find_out_who_is_gone(self, error: ConnectionLostError) -> None:
        """A dead host, QEMU or guest is part of the observation; anything else is trouble.

        Trouble that comes after the proof changes nothing.
        """
        testbed = self._testbed
        ended = testbed.host.ended()
        if ended is None and testbed.agent_answers():
            self._see_who_ends()
        elif ended is None:
            ended = testbed.host.ended_silently(str(error))
        self._so_far = dataclasses.replace(self._so_far, host_ended=ended)
        if not self.is_over:
            raise error

    def _see_who_ends(self) -> None:
        """Look until something has ended, if it does: a process hangs up before it is gone."""
        deadline = self._testbed.deadline(ENDING, "QEMU or its guest to end")
        while not self.is_over:
            self._sample()
            self._so_far = dataclasses.replace(self._so_far, events=tuple(self._events()))
            if deadline.passed():
                return

    def _sample(self) -> None:
        testbed = self._testbed
        tails = (*TAILS, *testbed.policy.logs)
        address = self._address if self._taken else None
        asked_status = testbed.recorder.ask("query-status")  # QEMU works while the agent does
        asked_stats = ask_vcpu_stats(testbed.recorder)
        seen = testbed.agent.sample(
            boot.NAME, tails, self._so_far.expected_gfn, address, place=self._instructions()
        )
        run_state = _ask(lambda: str(asked_status()["status"]), "")
        stats: Mapping[str, int] = _ask(asked_stats, {})
        sample = Sample(
            at=now() - self._touched,
            faults=tuple(FrameFaults(*fault) for fault in seen["faults"]),
            async_started=dict(seen["async_started"]),
            async_ready=dict(seen["async_ready"]),
            vcpu_stats=stats,
            vcpu_seconds=seen["vcpu_seconds"],
            run_state=run_state,
            exits=tuple(UserspaceExit(*each) for each in seen["exits"]),
            backed=seen["backed"],
            unanswered=seen["unanswered"],
            touches=seen["touches"],
            worker_seconds=seen["worker_seconds"],
            stacks=() if self._has_exited(stats) else testbed.agent.stacks(boot.NAME),
            place=self._place(),
        )
        console, qemu_log, *policy_log = seen["tails"]
        self._so_far = dataclasses.replace(
            self._so_far,
            samples=(*self._so_far.samples, sample),
            guest_console=console,
            qemu_log=qemu_log,
            vmm_deeds=policy.deeds("".join(policy_log)),
            qemu_ended=_ended(seen["ended"], qemu_log),
            back_end_ended=self._back_end(seen["gone"]),
            host_ended=testbed.host.ended(),
        )

    def _has_exited(self, stats: Mapping[str, int]) -> bool:
        """Whether a vCPU has left the guest since the last sample: then it is not stuck."""
        before = self._so_far.samples[-1].vcpu_stats if self._so_far.samples else {}
        return stats.get("exits") != before.get("exits")

    def _instructions(self) -> tuple[int, int]:
        """The first and the last guest instruction that may be the access."""
        if self._so_far.terms.by_kernel:
            return KERNEL_SPACE, (1 << 64) - 1
        rip = self._so_far.probe.rip
        return rip, rip

    def _place(self) -> VcpuPlace | None:
        """Where the vCPU is; asked for where nothing else tells what it faults on."""
        seen = self._so_far
        if seen.counted_by or not self._taken or seen.expected_gfn is None:
            return None
        gfn = seen.expected_gfn
        place: VcpuPlace | None = _ask(
            lambda: place_of(self._testbed.recorder, gfn, seen.scenario.vcpus), None
        )
        return place

    def _back_end(self, gone: Mapping[str, int]) -> Ended | None:
        """How a program of the backing's came to its end, if one did.

        One that ends well has been left by QEMU, whose own end is what counts.
        """
        failed = {name: code for name, code in gone.items() if code != 0}
        if not failed:
            return None
        name, code = next(iter(failed.items()))
        return _ended(code, f"{name}: {self._testbed.agent.tails([f'{name}.log'], 2000)[0]}")

    def _events(self) -> Sequence[Event]:
        testbed = self._testbed
        events = [*testbed.recorder.events(), *testbed.host.events()]
        return [
            dataclasses.replace(event, at=event.at - self._touched)
            for event in sorted(events, key=lambda event: event.at)
            if event.at >= self._started
        ]


def _ended(code: int | None, words: str) -> Ended | None:
    if code is None:
        return None
    return Ended(code if code >= 0 else None, -code if code < 0 else None, words)


def _ask(question: Callable[[], Any], otherwise: Any) -> Any:
    """Ask QEMU; a QEMU that is gone or silent is part of the observation, not trouble."""
    try:
        return question()
    except HostfaultError:
        return otherwise
