"""``kcidb.json``: the night for KernelCI's common database, version 5.3 of its schema.

FAIL is the kernel's fault (a known one as well), ERROR the test's, MISS the harness's.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from hostfault.nightly import summary
from hostfault.nightly.digest import Digest
from hostfault.nightly.results import Result, Status
from hostfault.plumbing.errors import SetupError

ORIGIN = "hostfault"
_STATUS = {
    Status.PASSED: "PASS",
    Status.KNOWN: "FAIL",
    Status.FAILED: "FAIL",
    Status.BROKEN: "ERROR",
    Status.HARNESS: "MISS",
    Status.TIMEOUT: "MISS",
    Status.SKIPPED: "SKIP",
}
_EXCERPT = 4000  # characters


def text(digest: Digest) -> str:
    """The whole file. Raises :class:`SetupError` for data that the schema does not allow."""
    data = {
        "version": {"major": 5, "minor": 3},
        "checkouts": [_checkout(digest, kernel) for kernel in digest.kernels],
        "builds": [_build(digest, kernel) for kernel in digest.kernels],
        "tests": [_test(digest, result) for result in digest.runs],
    }
    _check(data)
    return json.dumps(data, indent=1) + "\n"


def _check(data: Mapping[str, Any]) -> None:
    """Let the database's own library look at it."""
    try:
        schema = import_module("kcidb_io.schema").V5_3
    except ImportError as error:
        raise SetupError("kcidb-io is missing: start it by ci/nightly") from error
    try:
        schema.validate(data)
    except Exception as error:  # of jsonschema's, whatever its version calls them
        raise SetupError(f"kcidb.json is not as the schema wants it: {error}") from error


def _checkout(digest: Digest, kernel: str) -> dict[str, Any]:
    notes = [note for note in digest.night.notes if note.startswith(f"{kernel} is ")]
    commit = re.search(r"commit ([0-9a-f]{40})\b", " ".join(notes))
    checkout: dict[str, Any] = {
        "id": _id(digest, kernel),
        "origin": ORIGIN,
        "comment": _clean("; ".join([f"kernel {digest.night.kernels[kernel]}", *notes])),
        "start_time": _time(digest.night.began),
        "misc": {"kernel": _clean(kernel)},
    }
    if commit:
        checkout["git_commit_hash"] = commit[1]
    return checkout


def _build(digest: Digest, kernel: str) -> dict[str, Any]:
    records = [each.record for each in digest.runs if each.kernel == kernel and each.record]
    record = records[0] if records else {}
    return {
        "id": _id(digest, kernel),
        "checkout_id": _id(digest, kernel),
        "origin": ORIGIN,
        "architecture": "x86_64",
        "comment": _clean(str(record.get("host_release") or kernel)),
        "misc": {
            "host_kernel": record.get("host_kernel") or {},
            "kvm_build_id": str(record.get("kvm_build_id") or ""),
        },
    }


def _test(digest: Digest, result: Result) -> dict[str, Any]:
    said = ": ".join(filter(None, (result.verdict or result.reason, result.summary)))
    evidence = [str(line) for line in result.record.get("evidence") or []]
    test: dict[str, Any] = {
        "id": _id(digest, result.kernel, result.case, str(result.attempt)),
        "build_id": _id(digest, result.kernel),
        "origin": ORIGIN,
        "environment": {
            "comment": _clean(digest.night.runner or "a runner"),
            "misc": {"host": str(result.record.get("host_kind") or "")},
        },
        "path": _path(result.case),
        "status": _STATUS[result.outcome],
        "comment": _clean(said or result.outcome.value),
        "duration": round(result.seconds, 3),
        "misc": {
            "verdict": _clean(result.verdict),
            "known_issue": _clean(str(result.record.get("known_issue") or "")),
            "attempt": result.attempt,
            "runner": _clean(digest.night.runner),
            "replay": _clean(summary.replay(digest, result)),
        },
    }
    if result.began:
        test["start_time"] = _time(result.began)
    if evidence:
        test["log_excerpt"] = _clean("\n".join(evidence))[:_EXCERPT]
    return test


def _id(digest: Digest, *parts: str) -> str:
    """Unique among all that we send, and the same if the same night is sent again."""
    of = [digest.night.runner, digest.night.name, digest.night.shard, *parts]
    return f"{ORIGIN}:{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]}"


def _path(case: str) -> str:
    """``hostfault.test_truncate.virtiofs-dax-zero-load-apf``."""
    parts: Sequence[str] = re.findall(r"[\w-]+", case.rpartition("::")[2])
    return ".".join([ORIGIN, *parts])


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _clean(said: str) -> str:
    return said.replace("\0", "\N{REPLACEMENT CHARACTER}")
