"""Sets of cases, as ci/matrix.toml describes them. Pure but for :func:`load`."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import covertable

from hostfault.access import ACCESSES
from hostfault.backing import BACKINGS
from hostfault.case.model import PLAIN, Scenario
from hostfault.condition import CONDITIONS
from hostfault.fault import FAULTS, require
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.project import PROJECT
from hostfault.plumbing.registry import Registry

MATRIX = PROJECT / "ci" / "matrix.toml"
DEFAULT = "quick"
KINDS = ("backing", "fault", "access")  # of what there is
PARTS = ("backings", "faults", "accesses", "async_pf", "vcpus", "conditions")  # of a cell, in order
NAMED = ("backings", "faults", "accesses", "conditions")  # of what an impossible cell is told by


@dataclass(frozen=True)
class Impossible:
    """Cells that cannot exist. A part that is empty stands for everything."""

    backings: frozenset[str]
    faults: frozenset[str]
    accesses: frozenset[str]
    conditions: frozenset[str]
    reason: str  # one line

    def covers(self, *cell: str) -> bool:
        """Whether it is about this cell: its backing, fault, access and condition."""
        named = (self.backings, self.faults, self.accesses, self.conditions)
        return all(not names or one in names for names, one in zip(named, cell, strict=True))


@dataclass(frozen=True)
class Absent:
    """What users meet and the suite has not."""

    kind: str  # "backing" | "fault" | "access"
    name: str
    reason: str  # one line


@dataclass(frozen=True)
class Block:
    """A part of a set: a choice of each part of a cell, and how they are combined."""

    choices: tuple[tuple[Any, ...], ...]  # in the order of PARTS
    pairwise: bool


@dataclass(frozen=True)
class CaseSet:
    """A set, by its name."""

    name: str
    summary: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Matrix:
    """All that ci/matrix.toml says."""

    sets: Mapping[str, CaseSet]
    impossible: tuple[Impossible, ...]
    absent: tuple[Absent, ...] = ()

    def why_not(self, scenario: Scenario) -> str:
        """Why a cell cannot exist; "" if it can."""
        parts = (scenario.backing, scenario.fault, scenario.access, scenario.condition)
        return self._never(*parts) or _too_few(scenario.condition, scenario.vcpus)

    def _never(self, backing: str, fault: str, *more: str) -> str:
        """The same of every guest; ``more`` is an access and a condition."""
        cell = (backing, fault, *more)
        reasons = (each.reason for each in self.impossible if each.covers(*cell))
        return require(FAULTS[fault], BACKINGS[backing]) or next(reasons, "")

    def scenarios(self, name: str) -> tuple[Scenario, ...]:
        """The cells of a set, each once, in the order in which the registries have their parts.

        Raises :class:`UsageError` for a name that is unknown.
        """
        self.check(name)
        found = {cell for block in self.sets[name].blocks for cell in self._cells(block)}
        return tuple(sorted(found, key=_rank))

    def check(self, name: str) -> None:
        """Raise :class:`UsageError` for the name of no set."""
        if name not in self.sets:
            raise UsageError(f"no set {name!r}; known are {', '.join(self.sets)}")

    def counts(self) -> Mapping[str, int]:
        """How many cells each set has."""
        return {name: len(self.scenarios(name)) for name in self.sets}

    def _cells(self, block: Block) -> Iterator[Scenario]:
        combine = self._pairwise if block.pairwise else _product
        return (cell for cell in combine(block.choices) if not self.why_not(cell))

    def _pairwise(self, choices: Sequence[Sequence[Any]]) -> Iterator[Scenario]:
        """As few cells as cover every pair that can exist; the same ones each time."""
        constraints = [
            {
                "operator": "fn",
                "requires": [*NAMED],
                "evaluate": lambda row: not self._never(*(row[part] for part in NAMED)),
            },
            {
                "operator": "fn",
                "requires": ["vcpus", "conditions"],
                "evaluate": lambda row: not _too_few(row["conditions"], row["vcpus"]),
            },
        ]
        factors = dict(zip(PARTS, map(list, choices), strict=True))
        for row in covertable.make(factors, strength=2, constraints=constraints):
            yield _scenario(row[part] for part in PARTS)


def load(path: Path = MATRIX) -> Matrix:
    """What ci/matrix.toml says. Raises :class:`UsageError` for a word that means nothing."""
    with path.open("rb") as stream:
        data = tomllib.load(stream)
    sets = {
        name: CaseSet(name, each["summary"], tuple(map(_block, each["cells"])))
        for name, each in data["sets"].items()
    }
    impossible = tuple(map(_impossible, data.get("impossible", [])))
    return Matrix(sets, impossible, tuple(map(_absent, data.get("absent", []))))


def _block(entry: Mapping[str, Any]) -> Block:
    _check_words(entry, {*PARTS, "how"})
    how = entry.get("how", "product")
    if how not in ("product", "pairwise"):
        raise UsageError(f"how = {how!r} is neither product nor pairwise")
    names = {part: entry[part] for part in PARTS if part in entry}
    choices = {**_everything(), **names}
    _check_names(choices)
    return Block(tuple(tuple(choices[part]) for part in PARTS), how == "pairwise")


def _impossible(entry: Mapping[str, Any]) -> Impossible:
    _check_words(entry, {*NAMED, "reason"})
    _check_names(entry)
    named = {part: frozenset[str](entry.get(part, ())) for part in NAMED}
    return Impossible(**named, reason=entry["reason"])


def _absent(entry: Mapping[str, Any]) -> Absent:
    """Raises :class:`UsageError` for a thing that there is, by now."""
    kinds: Mapping[str, Iterable[Any]]
    kinds = dict(zip(KINDS, (BACKINGS, FAULTS, ACCESSES), strict=True))
    _check_words(entry, {*kinds, "reason"})
    kind = next((each for each in kinds if each in entry), "")
    if not kind or entry[kind] in {each.name for each in kinds[kind]}:
        raise UsageError(f"ci/matrix.toml: an absent {kind or 'nothing'} is there: {dict(entry)}")
    return Absent(kind, entry[kind], entry["reason"])


def _everything() -> dict[str, Sequence[Any]]:
    """What a block means that names nothing."""
    return {
        "backings": [each.name for each in BACKINGS],
        "faults": [each.name for each in FAULTS],
        "accesses": [each.name for each in ACCESSES],
        "async_pf": [True, False],
        "vcpus": [1],
        "conditions": [PLAIN],
    }


def _check_words(entry: Mapping[str, Any], known: Iterable[str]) -> None:
    if unknown := set(entry) - set(known):
        raise UsageError(f"ci/matrix.toml: unknown words {', '.join(sorted(unknown))}")


def _check_names(entry: Mapping[str, Any]) -> None:
    """Raise :class:`UsageError` for a backing, a fault, ... that there is not."""
    registries: Mapping[str, Registry[Any]] = {
        "backings": BACKINGS,
        "faults": FAULTS,
        "accesses": ACCESSES,
        "conditions": CONDITIONS,
    }
    for part, known in registries.items():
        for name in entry.get(part, ()):
            known[name]


def _product(choices: Sequence[Sequence[Any]]) -> Iterator[Scenario]:
    return (_scenario(parts) for parts in itertools.product(*choices))


def _scenario(parts: Iterable[Any]) -> Scenario:
    backing, fault, access, async_pf, vcpus, condition = parts
    return Scenario(backing, fault, access, async_pf, vcpus, condition)


def _too_few(condition: str, vcpus: int) -> str:
    """Why a condition means nothing with so few vCPUs; "" if it does."""
    least = CONDITIONS[condition].least_vcpus
    return f"{condition} needs {least} vCPUs" if vcpus < least else ""


def _rank(scenario: Scenario) -> tuple[object, ...]:
    """The place of a cell in a set: its configuration first, so that each is booted once."""
    faults, accesses = [each.name for each in FAULTS], [each.name for each in ACCESSES]
    backings, conditions = [each.name for each in BACKINGS], [each.name for each in CONDITIONS]
    return (
        backings.index(scenario.backing),
        scenario.vcpus,
        not scenario.async_pf,
        conditions.index(scenario.condition),
        faults.index(scenario.fault),
        accesses.index(scenario.access),
    )
