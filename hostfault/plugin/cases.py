"""What test modules write: which cases a test has, and what must become of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import pytest

from hostfault.access import ACCESSES
from hostfault.backing import BACKINGS
from hostfault.case.model import PLAIN, Scenario
from hostfault.case.record import Record
from hostfault.fault import FAULTS, require
from hostfault.plumbing.errors import UsageError

Case = Record
"""A case that was run, judged and recorded; the test says what it had to be."""


def each_case(
    backing: str,
    *,
    faults: Iterable[str],
    accesses: Iterable[str],
    async_pf: Collection[bool] = (True, False),
) -> pytest.MarkDecorator:
    """Run a test with ``scenario`` set to every combination.

    ``async_pf`` is whether the guest may use asynchronous page faults. Raises
    :class:`hostfault.plumbing.errors.UsageError` for a name that is unknown, and for a fault that
    cannot happen to that backing.
    """
    scenarios = [
        Scenario(BACKINGS[backing].name, FAULTS[fault].name, ACCESSES[access].name, apf)
        for apf in async_pf
        for fault in faults
        for access in accesses
    ]
    for scenario in scenarios:
        if reason := require(FAULTS[scenario.fault], BACKINGS[scenario.backing]):
            raise UsageError(reason)
    return pytest.mark.parametrize("scenario", scenarios, ids=case_id)


def case_id(scenario: Scenario) -> str:
    """How a case is called in a test's id: ``virtiofs-dax-zero-load-apf``.

    No id is part of another, so that ``-k`` picks exactly the one that it names: what few
    cases have comes before the end, as in ``virtiofs-dax-zero-load-2vcpus-migrating-apf``.
    """
    parts = [scenario.backing, scenario.fault, scenario.access]
    parts += [f"{scenario.vcpus}vcpus"] * (scenario.vcpus != 1)
    parts += [scenario.condition] * (scenario.condition != PLAIN)
    return "-".join([*parts, "apf" if scenario.async_pf else "noapf"])


def group_by_snapshot(
    items: list[pytest.Item], scenario_of: Callable[[pytest.Item], Scenario | None]
) -> None:
    """Reorder the tests with a scenario so that those that share a snapshot are neighbours.

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
