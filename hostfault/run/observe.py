"""Run one case in a place, and record everything until a verdict is proven."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostfault.backing import virtiofs_dax
from hostfault.case.model import (
    PAGE_SIZE,
    Access,
    Ended,
    Event,
    FrameFaults,
    Observation,
    Sample,
    Scenario,
    Verdict,
)
from hostfault.case.verdict import judge
from hostfault.guest import boot as guest_machine
from hostfault.guest import probe
from hostfault.host.testbed import Place
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, MissingCapabilityError
from hostfault.run import fault

PATIENCE = 30.0  # seconds from the touch until "nothing is proven" is an answer too
INTERVAL = 0.05  # seconds between samples
NEEDED_EVENTS = frozenset({"kvm_page_fault"})  # tracepoints without which nothing can be proven
TAILS = (guest_machine.CONSOLE, f"{guest_machine.NAME}.log")


@dataclass(frozen=True)
class Armed:
    """The proven state from which the fault may be injected."""

    task: probe.Probe
    gfn: int  # the frame that the access will touch


def arm(place: Place, scenario: Scenario) -> Armed:
    """Bring the guest task to the state "mapped, touched, waiting for the word".

    Proven from both sides: the probe says that it is armed, the daemon that it mapped the page.
    """
    fault.prepare(place.agent)
    path = f"{virtiofs_dax.MOUNT_POINT}/{fault.FILE}"
    offset, length = fault.PAGE * PAGE_SIZE, fault.PAGES * PAGE_SIZE
    task = probe.start(place.guest, path, offset, length, scenario.access, fault.STORED)
    task.arm(Deadline(30.0, "the probe to touch its page and be armed"))
    writable = scenario.access is Access.STORE
    return Armed(task, virtiofs_dax.wait_for_mapping(place.agent, fault.FILE, offset, writable))


def observe(
    place: Place,
    scenario: Scenario,
    armed: Armed,
    inject: Callable[[Place, Scenario], None] = fault.inject,
) -> Observation:
    """Inject the fault, give the word, and record until the verdict is proven or time is over."""
    recording = Recording(place, scenario, armed)
    recording.begin()
    recording.inject(inject)
    recording.touch()
    deadline = Deadline(PATIENCE, "a verdict")
    while recording.verdict() is None and not deadline.passed():
        recording.step()
    return recording.finish()


class Recording:
    """One case while it runs: samples, events, and the ends of things."""

    def __init__(self, place: Place, scenario: Scenario, armed: Armed) -> None:
        self._place = place
        self._task = armed.task
        self._started = now()
        self._touched = 0.0
        running = place.agent.hello()
        self._so_far = Observation(
            scenario=scenario,
            expected_gfn=armed.gfn,
            expected=fault.expected(scenario),
            waited=0.0,
            probe=armed.task.report(),
            host_release=str(running.get("release", "")),
            kvm_build_id=str(running.get("kvm_build_id", "")),
        )

    def begin(self) -> None:
        """Start to count, and take the sample that everything is compared with."""
        missing = NEEDED_EVENTS - set(self._place.agent.trace())
        if missing:
            raise MissingCapabilityError(
                "tracing",
                f"the host's kernel cannot count {', '.join(sorted(missing))}: "
                "see kernels/config/50-tracing.config for the options that it needs",
            )
        self._started = self._touched = now()
        self._step_or_end(self._sample)

    def inject(self, fault_of: Callable[[Place, Scenario], None]) -> None:
        """Do to the host what the case is about; the host may not survive it."""
        self._step_or_end(lambda: fault_of(self._place, self._so_far.scenario))

    def touch(self) -> None:
        """Give the word; from here on time is counted."""
        self._touched = now()
        self._keep(
            samples=tuple(
                dataclasses.replace(sample, at=self._started - self._touched)
                for sample in self._so_far.samples
            )
        )
        if self._so_far.host_ended is None:
            self._step_or_end(self._task.go)

    def step(self) -> None:
        """Wait a little for the probe or an event, then look at everything."""
        self._step_or_end(self._look)

    def verdict(self) -> Verdict | None:
        """What is proven so far."""
        return judge(self._so_far)

    def finish(self) -> Observation:
        """Add what is only asked for at the end."""
        if self._so_far.host_ended is None:
            self._step_or_end(self._last_look)
        return self._so_far

    def _look(self) -> None:
        if not self._task.listen(INTERVAL):
            self._place.recorder.wait_changed(INTERVAL)
        self._sample()
        if self._task.report().outcome is not None:
            self._keep(stored_byte=self._byte_in_the_file())

    def _last_look(self) -> None:
        place = self._place
        self._keep(
            registers=_ask(lambda: place.recorder.monitor("info registers -a"), ""),
            guest_console=guest_machine.console(place.agent),
            qemu_log=guest_machine.qemu_log(place.agent),
            host_log=place.agent.kernel_log(),
            stored_byte=self._byte_in_the_file(),
        )
        if self._so_far.qemu_ended is None:
            self._keep(guest_answers=self._guest_answers())

    def _byte_in_the_file(self) -> int | None:
        return self._place.agent.byte(fault.SHARED_FILE, fault.PAGE * PAGE_SIZE)

    def _guest_answers(self) -> bool | None:
        if self._so_far.samples[-1].run_state != "running":
            return None
        try:
            return self._place.guest.run("true", Deadline(5.0, "the guest to answer")).code == 0
        except ConnectionLostError:
            return False

    def _step_or_end(self, work: Callable[[], None]) -> None:
        """Do something that needs the machines; if one of them is what is gone, record that."""
        try:
            work()
        except ConnectionLostError as error:
            self._find_out_who_is_gone(error)
        self._keep(
            waited=now() - self._touched,
            probe=self._task.report(),
            events=tuple(self._events()),
        )

    def _find_out_who_is_gone(self, error: ConnectionLostError) -> None:
        """A dead host, QEMU or guest is part of the observation; anything else is trouble.

        Trouble that comes after the proof changes nothing.
        """
        place = self._place
        ended = place.host_ended()
        if ended is None and place.agent_answers():
            self._sample()
            self._keep(events=tuple(self._events()))
        elif ended is None:
            ended = place.host_ended_silently(str(error))
        self._keep(host_ended=ended)
        if self.verdict() is None:
            raise error

    def _sample(self) -> None:
        place = self._place
        seen = place.agent.sample(guest_machine.NAME, TAILS, self._so_far.expected_gfn)
        run_state = _ask(lambda: str(place.recorder.execute("query-status")["status"]), "")
        stats: Mapping[str, int] = _ask(lambda: vcpu_stats(place), {})
        sample = Sample(
            at=now() - self._touched,
            faults=tuple(FrameFaults(*fault) for fault in seen["faults"]),
            async_started=dict(seen["async_started"]),
            async_ready=seen["async_ready"],
            vcpu_stats=stats,
            vcpu_seconds=seen["vcpu_seconds"],
            run_state=run_state,
        )
        console, qemu_log = seen["tails"]
        self._keep(
            samples=(*self._so_far.samples, sample),
            guest_console=console,
            qemu_log=qemu_log,
            qemu_ended=_ended(seen["ended"], qemu_log),
            host_ended=place.host_ended(),
        )

    def _events(self) -> Sequence[Event]:
        place = self._place
        recorders = [place.recorder, *([place.machine.recorder] if place.machine else [])]
        events = [event for recorder in recorders for event in recorder.events()]
        return [
            dataclasses.replace(event, at=event.at - self._touched)
            for event in sorted(events, key=lambda event: event.at)
            if event.at >= self._started
        ]

    def _keep(self, **changes: Any) -> None:
        self._so_far = dataclasses.replace(self._so_far, **changes)


def vcpu_stats(place: Place) -> dict[str, int]:
    """KVM's counters by name, of all vCPUs together (QMP ``query-stats``, QAPI stats.json)."""
    answer = place.recorder.execute(
        "query-stats", {"target": "vcpu", "providers": [{"provider": "kvm"}]}
    )
    total: Counter[str] = Counter()
    for vcpu in answer:
        for stat in vcpu["stats"]:
            if type(stat["value"]) is int:  # not the booleans, like guest_mode
                total[stat["name"]] += stat["value"]
    return dict(total)


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
