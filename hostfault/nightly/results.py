"""What became of the tests of a night, as plain data that goes to JSON and back. Pure."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LOCAL = "local"  # the kernel of this machine itself, in place of a kernel's name

# From the best for a guest's user down; verdicts that are not here are as bad as can be.
_TOLD = ("ok", "task-error")  # right bytes, or the task knows
_STOPPED = ("vm-exit",)  # somebody knows


class Status(enum.StrEnum):
    """What a test said; who is to blame is in the name."""

    PASSED = "passed"
    KNOWN = "known"  # failed as a known issue foretells (pytest: xfailed)
    FAILED = "failed"  # the kernel did what it must not
    BROKEN = "broken"  # the test itself broke: an exception of its own
    HARNESS = "harness"  # the tools failed: nothing is known about the kernel
    TIMEOUT = "timeout"  # the same, by waiting in vain
    SKIPPED = "skipped"

    @property
    def is_trouble(self) -> bool:
        """Whether nothing was learnt of the kernel although something should have been."""
        return self in (Status.BROKEN, Status.HARNESS, Status.TIMEOUT)


@dataclass(frozen=True, order=True)
class Key:
    """One cell of the grid: a kernel and a case."""

    kernel: str  # as it was asked for: a name of the catalogue, NAME+SERIES, "local", a label
    case: str  # pytest's node id


@dataclass(frozen=True)
class Result:
    """One run of one test."""

    kernel: str
    case: str
    outcome: Status
    attempt: int = 1  # counts the runs of this test on this kernel in this night
    verdict: str = ""  # "spin", ...; empty if there is none
    summary: str = ""  # one line: the verdict's, or what went wrong
    reason: str = ""  # the kind of trouble, for counting: "DeadlineError", "pytest was killed"
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # set-up, call and tear-down together
    folder: str = ""  # of the test's files, below the night's folder; empty if there is none
    record: Mapping[str, Any] = field(default_factory=dict)  # verdict.json, all of it

    @property
    def key(self) -> Key:
        """Its place in the grid."""
        return Key(self.kernel, self.case)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase, as far as they were recorded."""
        seconds = self.record.get("seconds")
        if not isinstance(seconds, Mapping):
            return {}
        return {
            str(name): float(value)
            for name, value in seconds.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }

    @property
    def release(self) -> str:
        """What ``uname -r`` said on the host; empty if nothing ran there."""
        return str(self.record.get("host_release") or "")

    @property
    def packaged(self) -> bool:
        """Whether the host's kernel came straight from a distribution's package."""
        kernel = self.record.get("host_kernel")
        return isinstance(kernel, Mapping) and kernel.get("packaged") is True

    @property
    def word(self) -> str:
        """The one word for a cell: the verdict, or what happened in its place."""
        if self.outcome.is_trouble or self.outcome is Status.SKIPPED:
            return self.outcome.value
        return self.verdict or self.outcome.value


def rank(result: Result) -> int:
    """How bad a result is for those whose guest it is: 0 told, 1 all stopped, 2 bad."""
    if result.outcome is Status.PASSED:
        return rank_of(result.verdict) if result.verdict else 0
    return 2


def rank_of(verdict: str) -> int:
    """The same for a verdict that a test wants."""
    return 0 if verdict in _TOLD else 1 if verdict in _STOPPED else 2


def latest(results: Iterable[Result]) -> dict[Key, Result]:
    """The result that counts for each cell: that of its last run, trouble only if all met it."""
    found: dict[Key, Result] = {}
    for result in sorted(results, key=lambda each: each.attempt):
        before = found.get(result.key)
        if before is None or not result.outcome.is_trouble or before.outcome.is_trouble:
            found[result.key] = result
    return found


def flakes(results: Iterable[Result]) -> dict[Key, list[Result]]:
    """The cells whose runs in one night did not agree, with all their runs in order."""
    runs: dict[Key, list[Result]] = {}
    for result in sorted(results, key=lambda each: each.attempt):
        runs.setdefault(result.key, []).append(result)
    return {key: each for key, each in runs.items() if len({run.word for run in each}) > 1}


def to_json(result: Result) -> dict[str, Any]:
    """As plain data."""
    return dataclasses.asdict(result) | {"outcome": result.outcome.value}


def from_json(data: Any) -> Result:
    """What :func:`to_json` made; fields of a newer version are passed over.

    Raises ValueError for what is no result.
    """
    names = {each.name for each in dataclasses.fields(Result)}
    try:
        known = {name: value for name, value in data.items() if name in names}
        return Result(**(known | {"outcome": Status(data["outcome"])}))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a result: {data!r:.200}") from error


def short(case: str) -> str:
    """A case's name for people: ``truncate virtiofs-dax-zero-load-apf``."""
    found = re.fullmatch(r"(?:.*::)?(?P<test>\w+)(?:\[(?P<id>.*)\])?", case)
    if found is None:
        return case
    return " ".join(filter(None, (found["test"].removeprefix("test_"), found["id"])))


def in_order(names: Sequence[str]) -> list[str]:
    """Names without repetition, in the order of their first."""
    return list(dict.fromkeys(names))
