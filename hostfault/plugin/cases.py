"""What test modules write: which cases a test has, and what must become of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import pytest

from hostfault.case.model import Access, Fault, Scenario, Verdict, VerdictKind
from hostfault.report.record import Record, failure


def each_case(
    backing: str, *, faults: Iterable[Fault], async_pf: Collection[bool] = (True, False)
) -> pytest.MarkDecorator:
    """Run a test with ``scenario`` set to every combination, by load and by store.

    ``async_pf`` is whether the guest may use asynchronous page faults.
    """
    scenarios = [
        Scenario(backing, fault, access, apf)
        for apf in async_pf
        for fault in faults
        for access in Access
    ]
    return pytest.mark.parametrize("scenario", scenarios, ids=case_id)


def case_id(scenario: Scenario) -> str:
    """How a case is called in a test's id: ``virtiofs-dax-zero-load-apf``.

    No id is part of another, so that ``-k`` picks exactly the one that it names.
    """
    parts = [scenario.backing, scenario.fault, scenario.access]
    parts.append("apf" if scenario.async_pf else "noapf")
    if scenario.vcpus != 1:
        parts.append(f"{scenario.vcpus}vcpus")
    return "-".join(parts)


@dataclass(frozen=True)
class Case:
    """A scenario that was run, judged and recorded; the test says what it had to be."""

    record: Record

    @property
    def scenario(self) -> Scenario:
        """What was run."""
        return self.record.scenario

    @property
    def verdict(self) -> Verdict:
        """What became of it."""
        return self.record.run.verdict

    def must_be_told(self) -> None:
        """Fail unless somebody learnt of the error: the task, or under --accept vm the VMM."""
        __tracebackhide__ = True
        if not self.record.settings.accepts(self.verdict):
            pytest.fail(failure(self.record), pytrace=False)

    def must_be(self, kind: VerdictKind) -> None:
        """Fail unless the verdict is exactly this one."""
        __tracebackhide__ = True
        if self.verdict.kind is not kind:
            pytest.fail(f"expected {kind.value}, got {failure(self.record)}", pytrace=False)

    def must_be_signal(self, number: int) -> None:
        """Fail unless the task got that signal for its access."""
        __tracebackhide__ = True
        self.must_be(VerdictKind.TASK_ERROR)
        outcome = self.record.run.observation.probe.outcome
        if outcome is None or (outcome.kind, outcome.value) != ("signal", number):
            pytest.fail(f"expected signal {number}, got {failure(self.record)}", pytrace=False)


def group_by_machine(
    items: list[pytest.Item], scenario_of: Callable[[pytest.Item], Scenario | None]
) -> None:
    """Reorder the tests with a scenario so that those that share a booted machine are neighbours.

    Everything else keeps its place.
    """
    places = [at for at, item in enumerate(items) if scenario_of(item) is not None]
    groups: dict[tuple[object, ...], list[pytest.Item]] = {}
    for at in places:
        scenario = scenario_of(items[at])
        assert scenario is not None
        machine = (scenario.backing, scenario.async_pf, scenario.vcpus)
        groups.setdefault(machine, []).append(items[at])
    ordered = [item for group in groups.values() for item in group]
    for at, item in zip(places, ordered, strict=True):
        items[at] = item
