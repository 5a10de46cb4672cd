"""Arm a case in a test bed, and record everything until a verdict is proven."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostfault.access import ACCESSES
from hostfault.backing import NUMBER, PAGES
from hostfault.case.model import (
    Ended,
    Event,
    FrameFaults,
    Observation,
    Sample,
    Scenario,
    Terms,
    Verdict,
)
from hostfault.case.verdict import judge
from hostfault.fault import FAULTS, Scene, require
from hostfault.guest import boot, probe
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import (
    ConnectionLostError,
    HostfaultError,
    MissingCapabilityError,
    UsageError,
)

PATTERN: tuple[int | None, ...] = tuple(
    0x80 + page for page in range(PAGES)
)  # a byte for each page
STORED = 0x5A  # what an access that writes leaves; in no page's pattern
PATIENCE = 30.0  # seconds from the touch until "nothing is proven" is an answer too
INTERVAL = 0.05  # seconds between samples
NEEDED_EVENTS = frozenset({"kvm_page_fault"})  # tracepoints without which nothing can be proven
TAILS = (boot.CONSOLE, f"{boot.NAME}.log")


@dataclass(frozen=True)
class Armed:
    """The proven state from which the fault may be injected."""

    scenario: Scenario
    terms: Terms
    scene: Scene
    task: probe.Probe
    gfn: int  # the frame that the access will touch


def arm(testbed: Testbed, scenario: Scenario) -> Armed:
    """Bring the guest task to the state "mapped, touched, waiting for the word".

    Proven from both sides: the probe says that it is armed, the backing at which frame it is.
    """
    fault, access, backing = FAULTS[scenario.fault], ACCESSES[scenario.access], testbed.backing
    if reason := require(fault, backing):
        raise UsageError(reason)
    fill = list(PATTERN)
    if fault.starts_as_hole:
        fill[NUMBER] = None
    page, view = backing.make_page(testbed.agent, fill), backing.view()
    page_first = not fault.starts_as_hole
    task = probe.start(testbed.guest, view, access.name, STORED, page_first=page_first)
    task.arm(Deadline(30.0, "the probe to touch its page and be armed"))
    gfn = backing.frame(testbed.agent, testbed.recorder, page, writes=access.writes)
    terms = Terms(
        takes_page=fault.takes_page,
        control=fault.control,
        writes=access.writes,
        by_kernel=access.by_kernel,
        expected=fault.expected(access, fill[NUMBER] or 0, STORED),
    )
    return Armed(scenario, terms, Scene(testbed.agent, testbed.guest, page, view), task, gfn)


def observe(
    testbed: Testbed, armed: Armed, inject: Callable[[Scene], None] | None = None
) -> Observation:
    """Inject the fault, give the word, and record until the verdict is proven or time is over."""
    recording = Recording(testbed, armed)
    recording.begin()
    recording.inject(inject or FAULTS[armed.scenario.fault].inject)
    recording.touch()
    deadline = Deadline(PATIENCE, "a verdict")
    while recording.verdict() is None and not deadline.passed():
        recording.step()
    return recording.finish()


class Recording:
    """One case while it runs: samples, events, and the ends of things."""

    def __init__(self, testbed: Testbed, armed: Armed) -> None:
        self._testbed = testbed
        self._scene = armed.scene
        self._task = armed.task
        self._started = now()
        self._touched = 0.0
        running = testbed.agent.hello()
        self._so_far = Observation(
            scenario=armed.scenario,
            terms=armed.terms,
            page=armed.scene.page,
            expected_gfn=armed.gfn,
            waited=0.0,
            probe=armed.task.report(),
            host_release=str(running.get("release", "")),
            kvm_build_id=str(running.get("kvm_build_id", "")),
        )

    def begin(self) -> None:
        """Start to count, and take the sample that everything is compared with."""
        missing = NEEDED_EVENTS - set(self._testbed.agent.trace())
        if missing:
            raise MissingCapabilityError(
                "tracing",
                f"the host's kernel cannot count {', '.join(sorted(missing))}: "
                "see kernels/config/50-tracing.config for the options that it needs",
            )
        self._started = self._touched = now()
        self._step_or_end(self._sample)

    def inject(self, fault: Callable[[Scene], None]) -> None:
        """Do to the host what the case is about; the host may not survive it."""
        self._step_or_end(lambda: fault(self._scene))

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
            self._testbed.recorder.wait_changed(INTERVAL)
        self._sample()
        if self._task.report().outcome is not None:
            self._keep(stored_byte=self._byte_in_the_file())

    def _last_look(self) -> None:
        testbed = self._testbed
        console, qemu_log = boot.logs(testbed.agent)
        self._keep(
            registers=_ask(lambda: testbed.recorder.monitor("info registers -a"), ""),
            guest_console=console,
            qemu_log=qemu_log,
            host_log=testbed.agent.kernel_log(),
            stored_byte=self._byte_in_the_file(),
        )
        if self._so_far.qemu_ended is None:
            self._keep(guest_answers=self._guest_answers())

    def _byte_in_the_file(self) -> int | None:
        return self._testbed.agent.byte(self._scene.page.path, self._scene.page.offset)

    def _guest_answers(self) -> bool | None:
        if self._so_far.samples[-1].run_state != "running":
            return None
        try:
            return self._testbed.guest.run("true", Deadline(5.0, "the guest to answer")).code == 0
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
        testbed = self._testbed
        ended = testbed.host.ended()
        if ended is None and testbed.agent_answers():
            self._sample()
            self._keep(events=tuple(self._events()))
        elif ended is None:
            ended = testbed.host.ended_silently(str(error))
        self._keep(host_ended=ended)
        if self.verdict() is None:
            raise error

    def _sample(self) -> None:
        testbed = self._testbed
        seen = testbed.agent.sample(boot.NAME, TAILS, self._so_far.expected_gfn)
        run_state = _ask(lambda: str(testbed.recorder.execute("query-status")["status"]), "")
        stats: Mapping[str, int] = _ask(lambda: vcpu_stats(testbed), {})
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
            host_ended=testbed.host.ended(),
        )

    def _events(self) -> Sequence[Event]:
        testbed = self._testbed
        events = [*testbed.recorder.events(), *testbed.host.events()]
        return [
            dataclasses.replace(event, at=event.at - self._touched)
            for event in sorted(events, key=lambda event: event.at)
            if event.at >= self._started
        ]

    def _keep(self, **changes: Any) -> None:
        self._so_far = dataclasses.replace(self._so_far, **changes)


def vcpu_stats(testbed: Testbed) -> dict[str, int]:
    """KVM's counters by name, of all vCPUs together (QMP ``query-stats``, QAPI stats.json)."""
    answer = testbed.recorder.execute(
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
