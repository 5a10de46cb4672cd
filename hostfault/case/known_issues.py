"""Known issues of packaged kernels: kernels/known_issues.toml as typed data. Pure but for load.

A known issue is about one verdict on one range of releases. It never covers a kernel that
somebody built, nor the kernel of a local host, of which nobody can say where it came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import Kernel, Scenario, VerdictKind
from hostfault.plumbing.project import KERNELS
from hostfault.plumbing.versions import Range, range_of, version_of

KNOWN_ISSUES = KERNELS / "known_issues.toml"


@dataclass(frozen=True)
class KnownIssue:
    """A defect that packaged kernels are known to have."""

    id: str
    summary: str
    reference: str  # where it was discussed
    kernels: Range  # the releases that have it
    verdict: VerdictKind  # what it makes of a test
    faults: frozenset[str]  # the faults that it concerns

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
            kernels=range_of(entry["kernels"]),
            verdict=VerdictKind(entry["verdict"]),
            faults=frozenset(entry["faults"]),
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
    version = version_of(kernel.release)
    for issue in issues:
        if scenario.fault in issue.faults and issue.kernels.covers(version):
            return issue
    return None
