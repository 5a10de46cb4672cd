"""The content of verdict.json, and the same as JUnit properties."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hostfault.case.model import to_json
from hostfault.case.record import Record


def verdict_json(record: Record) -> dict[str, Any]:
    """The content of verdict.json; docs/verdicts.md says how to read it."""
    verdict, facts, scenario = record.verdict, record.facts, record.scenario
    return {
        "verdict": verdict.kind.value,
        "summary": verdict.summary,
        "accepted": record.is_accepted,
        "known_issue": record.issue.id if record.issue else None,
        "test": record.test,
        "host_kind": facts.host_kind,
        "host_reason": facts.host_reason,
        "host_kernel": to_json(facts.host_kernel),
        "host_release": record.observation.host_release or facts.host_release,
        "host_cpu": facts.host_cpu,
        "host_microcode": facts.host_microcode,
        "kvm_build_id": record.observation.kvm_build_id,
        "guest_kernel": to_json(facts.guest_kernel),
        "qemu": to_json(facts.qemu),
        "back_end": facts.back_end,
        "qemu_version": record.observation.qemu_version,
        "qemu_build_id": record.observation.qemu_build_id,
        "vmm_policy": record.observation.vmm_policy,
        **to_json(scenario),
        "options": to_json(record.settings),
        "seconds": {phase: round(seconds, 3) for phase, seconds in record.phases.items()},
        "cached": record.cached,
        "vmm_deeds": to_json(record.observation.vmm_deeds),
        "recovery": to_json(record.observation.recovery),
        "page": to_json(record.observation.page),
        "version": record.observation.version,
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
