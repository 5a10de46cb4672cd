"""Arm a case in a test bed: its guest task waits for the word, and what it stands on is known."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hostfault.access import ACCESSES, Access
from hostfault.backing import NUMBER, PAGES
from hostfault.case.model import PAGE_SIZE, Scenario, Terms
from hostfault.condition import CONDITIONS
from hostfault.fault import FAULTS, Scene, require
from hostfault.guest import boot, disk, hotplug, nesting, probe, wire
from hostfault.host.testbed import HostLife, Testbed
from hostfault.image.qemu import PROGRAM
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    GuestLostError,
    HostfaultError,
    MissingCapabilityError,
    UsageError,
)
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.run.liveness import Liveness

log = logging.getLogger(__name__)

PATTERN: tuple[int | None, ...] = tuple(range(0x80, 0x80 + PAGES))  # a byte for each page
STORED = 0x5A  # what an access that writes leaves; in no page's pattern
ARMING = 30.0  # seconds that a probe may take, in a guest that has just gone on
NEEDED_EVENTS = frozenset({"kvm_page_fault"})  # tracepoints without which nothing can be proven


_DEVICES = {"disk": disk.plug, "wire": wire.plug}  # by Access.device


@dataclass(frozen=True)
class Running:
    """What runs, as the host says; see Observation."""

    host_release: str
    kvm_build_id: str
    qemu_build_id: str
    host_log_read: bool

    @classmethod
    def on(cls, agent: Agent) -> Running:
        """Ask for it."""
        said = agent.hello()
        return cls(
            host_release=str(said.get("release", "")),
            kvm_build_id=str(said.get("kvm_build_id", "")),
            qemu_build_id=agent.program_of(boot.NAME, PROGRAM),
            host_log_read=agent.reads_kernel_log(),
        )


@dataclass(frozen=True)
class Armed:
    """The proven state from which the fault may be injected."""

    scenario: Scenario
    terms: Terms
    scene: Scene
    task: probe.Probe
    gfn: int  # the frame that the access will touch
    address: int | None  # where QEMU has that frame mapped; None: it does not say
    liveness: Liveness
    running: Running
    counted_by: str = "tracefs"  # see Observation
    seed: int = 0  # of what the task leaves to chance
    huge_mapped: int = 0  # see Observation


def arm(testbed: Testbed, scenario: Scenario, seed: int = 0) -> Armed:
    """Bring the guest task to the state "mapped, touched, waiting for the word".

    What the task leaves to chance follows from ``seed``.

    Proven from both sides: the probe says that it is armed, the backing at which frame it is.
    """
    fault, access, backing = FAULTS[scenario.fault], ACCESSES[scenario.access], testbed.backing
    if reason := require(fault, backing):
        raise UsageError(reason)
    fill = list(PATTERN)
    if fault.starts_as_hole:
        fill[NUMBER] = None
    condition = CONDITIONS[scenario.condition]
    condition.begin(testbed)
    liveness = Liveness(testbed.guest, testbed.slowness)
    liveness.ask()
    counted_by = start_tracing(testbed.agent)
    page, view = backing.make_page(testbed.agent, fill), backing.view()
    page_first = not fault.starts_as_hole
    task = probe.Probe(testbed.probe or probe.start(testbed.guest))
    if access.device:
        found = testbed.deadline(hotplug.PATIENCE, f"the guest to find its {access.device}")
        _DEVICES[access.device](testbed.agent, testbed.recorder, testbed.guest, found)
    if access.nested:
        loaded = testbed.deadline(nesting.PATIENCE, "the guest to load its KVM")
        nesting.load_kvm(testbed.guest, loaded)
    task.request(view, access.name, STORED, page_first=page_first, seed=seed, task=condition.task)
    # The guest has enough to do now: meanwhile, what does not depend on it.
    running = Running.on(testbed.agent)
    wait_armed(task, testbed.host, testbed.deadline(ARMING, "the probe to touch and be armed"))
    gfn = backing.frame(testbed.agent, testbed.recorder, page, writes=access.writes)
    condition.prove(testbed, gfn)
    first_gfn = gfn if page_first else gfn - view.offset // PAGE_SIZE
    check_first_touch(testbed.agent, access, counted_by, first_gfn, task.report().rip)
    terms = Terms(
        takes_page=fault.takes_page,
        control=fault.control,
        writes=access.writes,
        by_kernel=access.by_kernel,
        expected=fault.expected(access, fill[NUMBER] or 0, STORED),
        by_device=access.by_device,
        nested=access.nested,
    )
    scene = Scene(testbed.agent, testbed.guest, page, view)
    address = _host_address(testbed.recorder, gfn)
    if access.device and address is not None:
        testbed.agent.count_touches(address, PAGE_SIZE)
    huge = require_huge(testbed.agent, address) if page.huge else 0
    return Armed(
        scenario, terms, scene, task, gfn, address, liveness, running, counted_by, seed, huge
    )


def require_huge(agent: Agent, address: int | None) -> int:
    """Check that QEMU has huge pages alone of what it has of the file; returns how much, in bytes.

    What the guest has touched by now is one page, so that is the page or, where the page must not
    be there yet, its like. (proc(5), smaps.)
    """
    pages, huge = (0, 0) if address is None else agent.huge_in(boot.NAME, address)
    if not huge or pages != huge:
        raise HostfaultError(
            f"of {pages} bytes that QEMU has mapped of the file, {huge} are huge pages: "
            "the fault would be one of small pages"
        )
    return huge


def wait_armed(task: probe.Probe, host: HostLife, deadline: Deadline) -> None:
    """Wait for the probe.

    Raises :class:`GuestLostError` if the guest hangs up on a host that lives, whose CPU TCG
    emulates. Nothing has been done to either by then, so the same case may be tried again.
    """
    try:
        task.arm(deadline)
    except ConnectionLostError as error:
        if host.on_tcg and host.ended() is None:
            raise GuestLostError(f"the connection ended before the arming: {error}") from error
        raise


def start_tracing(agent: Agent) -> str:
    """Begin to count; returns by what, see :class:`Observation`.

    Raises :class:`MissingCapabilityError` for a kernel that cannot, although we may.
    """
    missing = NEEDED_EVENTS - set(agent.trace(anew=False))
    how, why = agent.counted_by()
    if why:
        log.info("no tracepoint is counted: %s", why)
    if missing and how:
        raise MissingCapabilityError(
            "tracing",
            f"the host's kernel cannot count {', '.join(sorted(missing))}: "
            "see kernels/config/50-tracing.config for the options that it needs",
        )
    return how


def check_first_touch(agent: Agent, access: Access, counted_by: str, gfn: int, rip: int) -> None:
    """Check that faults will be counted, as well as can be told of that access.

    The tracepoint shows which address a guest's guest touches, and nothing but the first touch that
    this is the frame's. Raises :class:`MissingCapabilityError`.
    """
    if access.by_device:
        log.info("no touch by a device is one that KVM sees")
    elif counted_by == "tracefs":
        calibrate(agent, gfn, 0 if access.by_kernel else rip)
    elif access.nested:
        raise MissingCapabilityError(
            "tracing", "what a guest of the guest touches takes tracefs to prove, and so root"
        )
    else:
        require_two_dimensional_paging(agent)


def calibrate(agent: Agent, gfn: int, rip: int) -> None:
    """Check that the tracer saw the first touch, at its frame and its instruction.

    A tracer that is blind proves nothing later. It is without two-dimensional paging, where the
    address that it shows is a virtual one. ``rip`` is 0 where the guest's kernel has it.
    """
    seen = agent.sample(boot.NAME, (), gfn)["faults"]
    if any(fault[0] == gfn and (rip == 0 or fault[1] in (0, rip)) for fault in seen):
        return
    raise MissingCapabilityError(
        "tracing",
        f"KVM's tracepoint did not show the first touch of gfn {gfn:#x} at {rip:#x}: is "
        f"two-dimensional paging off, or this another PID namespace? It showed {seen[:4]}",
    )


def require_two_dimensional_paging(agent: Agent) -> None:
    """Where no first touch can be seen: without it, addresses and statistics mean another thing.

    Raises :class:`MissingCapabilityError`. (Both parameters can be read by every user.)
    """
    told = []
    for path in ("kvm_amd/parameters/npt", "kvm_intel/parameters/ept"):
        with suppress(HostfaultError):  # a module that is not there
            told.append(f"{path}={agent.read(f'/sys/module/{path}', 0, 16)[0].strip()}")
    if not any(each.endswith(("=Y", "=1")) for each in told):
        raise MissingCapabilityError(
            "tracing", f"without tracefs, two-dimensional paging must be on: {told or 'no KVM'}"
        )


def _host_address(recorder: Recorder, gfn: int) -> int | None:
    """Where QEMU has a guest frame mapped, as it says itself (HMP ``gpa2hva``)."""
    said = recorder.monitor(f"gpa2hva {gfn * PAGE_SIZE:#x}")
    found = re.search(r"is (0x[0-9a-f]+)", said)
    return int(found[1], 16) if found else None


def ask_vcpu_stats(recorder: Recorder) -> Callable[[], dict[str, int]]:
    """Ask for :func:`vcpu_stats`; what is returned waits for them."""
    answer = recorder.ask("query-stats", {"target": "vcpu", "providers": [{"provider": "kvm"}]})
    return lambda: _total(answer())


def vcpu_stats(recorder: Recorder) -> dict[str, int]:
    """KVM's counters by name, of all vCPUs together (QMP ``query-stats``, QAPI stats.json)."""
    return ask_vcpu_stats(recorder)()


def _total(answer: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for vcpu in answer:
        for stat in vcpu["stats"]:
            if type(stat["value"]) is int:  # not the booleans, like guest_mode
                total[stat["name"]] += stat["value"]
    return dict(total)
