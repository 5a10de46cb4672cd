"""What is recorded of one test: the content of verdict.json, and the JUnit properties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.case.model import Scenario, to_json
from hostfault.kernel.known_issues import KnownIssue
from hostfault.plugin.options import Settings
from hostfault.run.interface import LabFacts, Run


@dataclass(frozen=True)
class Record:
    """One test that came to a verdict."""

    test: str  # its pytest node id
    scenario: Scenario
    facts: LabFacts
    settings: Settings
    run: Run
    issue: KnownIssue | None  # the one that the host kernel is known to have, for this scenario
    folder: Path  # its artifacts

    @property
    def is_known(self) -> bool:
        """Whether the verdict is the one that the known issue foretells."""
        return self.issue is not None and self.run.verdict.kind is self.issue.verdict


def verdict_json(record: Record) -> dict[str, Any]:
    """The content of verdict.json; docs/verdicts.md says how to read it."""
    verdict, facts, scenario = record.run.verdict, record.facts, record.scenario
    return {
        "verdict": verdict.kind.value,
        "summary": verdict.summary,
        "accepted": record.settings.accepts(verdict),
        "known_issue": record.issue.id if record.issue else None,
        "test": record.test,
        "host_kind": facts.host_kind,
        "host_reason": facts.host_reason,
        "host_kernel": to_json(facts.host_kernel),
        "host_release": record.run.observation.host_release or facts.host_release,
        "kvm_build_id": record.run.observation.kvm_build_id,
        "guest_kernel": to_json(facts.guest_kernel),
        "qemu": to_json(facts.qemu),
        **to_json(scenario),
        "options": to_json(record.settings),
        "seconds": {phase: round(seconds, 3) for phase, seconds in record.run.phases.items()},
        "cached": record.run.cached,
        "evidence": list(verdict.evidence),
    }


def properties(record: Record) -> Iterator[tuple[str, str]]:
    """The same as flat text: ``seconds.guest boot``, ``host_kernel.release``, ..."""
    yield from _flat("", verdict_json(record))
    yield "artifacts", str(record.folder)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list):
        yield prefix, "\n".join(str(item) for item in value)
    else:
        yield prefix, "" if value is None else str(value)


def failure(record: Record) -> str:
    """What a person reads when the verdict is not what the test wants."""
    verdict = record.run.verdict
    lines = [f"{verdict.kind.value.upper()}: {verdict.summary}", "", "evidence:"]
    lines += [f"  {line}" for line in verdict.evidence]
    if record.is_known and record.issue is not None:
        lines += ["", record.issue.reason]
    return "\n".join([*lines, "", f"artifacts: {record.folder}"])
