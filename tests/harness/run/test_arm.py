"""Arming a case: what must be seen before a fault is injected, with pretended machines."""

from __future__ import annotations

from typing import Any, cast

import pytest
from case_stand_in import GFN, RIP, PretendedAgent, PretendedHost, PretendedQemu

from hostfault.access import ACCESSES
from hostfault.case.model import Ended
from hostfault.guest.probe import Probe
from hostfault.host.testbed import HostLife, OutlivesUs
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    GuestLostError,
    HostfaultError,
    MissingCapabilityError,
)
from hostfault.run.arm import (
    calibrate,
    check_first_touch,
    require_huge,
    require_two_dimensional_paging,
    start_tracing,
    vcpu_stats,
    wait_armed,
)


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
        wait_armed(Probe(cast("Any", HungUp())), host, Deadline(5.0, "the probe"))
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


def test_a_guest_of_the_guest_is_judged_only_where_all_frames_are_counted() -> None:
    agent: Any = PretendedAgent()
    check_first_touch(agent, ACCESSES["nested"], "tracefs", GFN, RIP)
    with pytest.raises(MissingCapabilityError, match="did not show the first touch"):
        check_first_touch(agent, ACCESSES["nested"], "tracefs", GFN + 1, RIP)
    with pytest.raises(MissingCapabilityError, match="takes tracefs"):
        check_first_touch(agent, ACCESSES["nested"], "perf", GFN, RIP)


def test_row_14_a_tracer_that_does_not_see_the_first_touch_is_a_missing_capability() -> None:
    agent = PretendedAgent()
    calibrate(cast("Any", agent), GFN, RIP)
    calibrate(cast("Any", agent), GFN, 0)
    for gfn, rip in ((GFN + 1, RIP), (GFN, RIP + 4)):
        with pytest.raises(MissingCapabilityError, match="did not show the first touch"):
            calibrate(cast("Any", agent), gfn, rip)


def test_the_statistics_of_all_vcpus_are_added_up() -> None:
    class Qemu(PretendedQemu):
        def execute(self, command: str, *_: object) -> Any:
            assert command == "query-stats"
            stats = [{"name": "pf_taken", "value": 5}, {"name": "guest_mode", "value": True}]
            return [{"stats": stats}, {"stats": [{"name": "pf_taken", "value": 7}]}]

    assert vcpu_stats(cast("Any", Qemu())) == {"pf_taken": 12}


@pytest.mark.parametrize(("pages", "huge"), [(4096, 0), (2 << 20, 0), ((2 << 20) + 4096, 2 << 20)])
def test_a_page_that_must_be_huge_and_is_not_is_no_case(pages: int, huge: int) -> None:
    agent = PretendedAgent()
    agent.huge = (2 << 20, 2 << 20)
    assert require_huge(cast("Any", agent), 0x7F0000000000) == 2 << 20
    agent.huge = (pages, huge)
    with pytest.raises(HostfaultError, match=rf"of {pages} bytes .* {huge} are huge"):
        require_huge(cast("Any", agent), 0x7F0000000000)


def test_a_page_that_must_be_huge_and_is_nowhere_is_no_case() -> None:
    with pytest.raises(HostfaultError, match="of 0 bytes"):
        require_huge(cast("Any", PretendedAgent()), None)
