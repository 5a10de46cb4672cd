"""Known issues of packaged kernels: kernels/known_issues.toml as typed data. Pure but for load.

A known issue is about one verdict on one range of releases. It never covers a kernel that
somebody built, nor the kernel of a local host, of which nobody can say where it came from.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hostfault.model import Fault, Kernel, Scenario, VerdictKind

KNOWN_ISSUES = Path(__file__).parents[1] / "kernels" / "known_issues.toml"


@dataclass(frozen=True)
class KnownIssue:
    """A defect that packaged kernels are known to have."""

    id: str
    summary: str
    reference: str  # where it was discussed
    first: tuple[int, ...]  # first release that has it, e.g. (6, 1)
    last: tuple[int, ...]  # last one; (7, 3) is every 7.3.y
    verdict: VerdictKind  # what it makes of a test
    faults: frozenset[Fault]  # the faults that it concerns

    @property
    def reason(self) -> str:
        """What an xfail says."""
        return f"known issue {self.id}: {self.summary} ({self.reference})"


def load(path: Path = KNOWN_ISSUES) -> tuple[KnownIssue, ...]:
    """All known issues. Raises ValueError or KeyError for a table that is not as described."""
    with path.open("rb") as stream:
        entries = tomllib.load(stream)["issue"]
    return tuple(
        KnownIssue(
            id=entry["id"],
            summary=entry["summary"],
            reference=entry["reference"],
            first=_version(entry["kernels"]["first"]),
            last=_version(entry["kernels"]["last"]),
            verdict=VerdictKind(entry["verdict"]),
            faults=frozenset(Fault(fault) for fault in entry["faults"]),
        )
        for entry in entries
    )


def match(
    issues: Iterable[KnownIssue], kernel: Kernel | None, scenario: Scenario
) -> KnownIssue | None:
    """The issue that a host kernel is known to show in a scenario.

    ``kernel`` is None on a local host.
    """
    if kernel is None or not kernel.packaged:
        return None
    version = _version(kernel.release)
    for issue in issues:
        first, last = issue.first, issue.last
        if scenario.fault in issue.faults and (
            first <= version[: len(first)] and version[: len(last)] <= last
        ):
            return issue
    return None


def _version(text: str) -> tuple[int, ...]:
    """The numbers that a release begins with: (7, 3, 4) for 7.3.4+deb13-cloud-amd64."""
    found = re.match(r"\d+(?:\.\d+)+", text)
    if found is None:
        raise ValueError(f"{text!r} does not begin with a kernel version")
    return tuple(int(part) for part in found[0].split("."))
