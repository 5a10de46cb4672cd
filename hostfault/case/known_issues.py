"""Known issues of packaged kernels: kernels/known_issues.toml as typed data. Pure but for load.

A known issue is about one verdict on one range of releases, of the host's kernel or of the
guest's. It never covers a kernel that somebody built, nor the kernel of a local host, of which
nobody can say where it came from.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import STOCK, Kernel, Scenario, VerdictKind
from hostfault.case.settings import VMM_POLICIES
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
    accesses: frozenset[str] | None = None  # the same of accesses; None: all
    vmm_policies: frozenset[str] = frozenset(VMM_POLICIES)  # with which of them it shows
    not_accesses: frozenset[str] = frozenset()  # accesses that it does not concern
    of_guest: bool = False  # it is the guest's kernel that has it

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
            accesses=frozenset(entry["accesses"]) if "accesses" in entry else None,
            not_accesses=frozenset(entry.get("not_accesses", ())),
            vmm_policies=_policies(entry.get("vmm_policies", VMM_POLICIES)),
            of_guest=entry.get("of", "host") == "guest",
        )
        for entry in entries
    )


def _policies(names: Iterable[str]) -> frozenset[str]:
    found = frozenset(names)
    if unknown := found - set(VMM_POLICIES):
        raise ValueError(f"there is no VMM policy {', '.join(sorted(unknown))}")
    return found


def match(
    issues: Iterable[KnownIssue],
    host: Kernel | None,
    scenario: Scenario,
    *,
    guest: Kernel | None = None,
    vmm_policy: str = STOCK,
) -> KnownIssue | None:
    """The first issue that one of the two kernels is known to show in a scenario.

    ``host`` is None on a local host.
    """
    for issue in issues:
        kernel = guest if issue.of_guest else host
        if kernel is None or not kernel.packaged or scenario.fault not in issue.faults:
            continue
        if issue.accesses is not None and scenario.access not in issue.accesses:
            continue
        if scenario.access in issue.not_accesses:
            continue
        if vmm_policy in issue.vmm_policies and issue.kernels.covers(version_of(kernel.release)):
            return issue
    return None
