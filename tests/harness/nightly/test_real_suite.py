"""A night of the project's real tests and its real plugin, with a lab that only pretends.

What stands in for the machines is the bisection's; what a run leaves is the plugin's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hostfault.nightly import sets
from hostfault.nightly.__main__ import main
from hostfault.nightly.results import Result, Status
from hostfault.nightly.runs import PytestPrograms, collect
from hostfault.nightly.store import NightStore
from hostfault.plugin import sets as matrix

STAND_INS = Path(__file__).parents[1] / "bisect"


def results_of_a_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> dict[str, Result]:
    """A smoke night on 7.3.4 and on 6.12, by kernel and fault."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_INS), *_path()]))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["--set", "smoke", "--kernels", "7.3.4,6.12", "--results", str(tmp_path)]
    main(words, PytestPrograms(pytest=(*PytestPrograms().pytest, "-p", "bisect_stand_ins")))
    store = NightStore(tmp_path)
    found = store.results(store.names()[-1])
    fault = {"test_control": "none", "test_truncate": "zero"}
    return {
        f"{each.kernel} {fault[each.case.rpartition('::')[2].partition('[')[0]]}": each
        for each in found
    }


def _path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def test_the_real_plugins_words_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results_of_a_night(tmp_path, monkeypatch, BROKEN_PACKAGES="6.12")
    known = found["7.3.4 zero"]
    assert (known.outcome, known.word) == (Status.KNOWN, "spin")
    assert known.summary == "spin, said the stand-in"
    assert known.release.startswith("7.3.4")
    assert known.packaged
    assert known.record["known_issue"] == "kvm-apf-error"
    assert found["7.3.4 none"].outcome is Status.FAILED  # a control must not spin
    for fault in ("none", "zero"):
        trouble = found[f"6.12 {fault}"]
        assert trouble.outcome is Status.HARNESS
        assert trouble.reason == "SetupError"
        assert "the machine is out of order" in trouble.summary


def test_the_evidence_of_a_real_run_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results_of_a_night(tmp_path, monkeypatch, BROKEN_PACKAGES="6.12")
    store = NightStore(tmp_path)
    evidence = store.evidence(store.names()[-1])
    verdict = json.loads(evidence.text(found["7.3.4 zero"], "verdict.json"))
    assert verdict == found["7.3.4 zero"].record
    assert "out of order" in evidence.text(found["6.12 zero"], "error.txt")


def test_a_fix_on_a_listed_kernel_is_a_pass_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results_of_a_night(tmp_path, monkeypatch, FIRST_FIXED="7.3.4")
    fixed = found["7.3.4 zero"]
    assert (fixed.outcome, fixed.word) == (Status.PASSED, "vm-exit")
    assert fixed.reason == "passes in spite of a known issue"
    assert found["6.12 zero"].outcome is Status.KNOWN


@pytest.mark.parametrize("name", ["quick", "nightly"])
def test_a_set_of_the_matrix_is_what_a_night_runs(name: str) -> None:
    cases = collect(PytestPrograms(), sets.load()[name], ())
    assert len(cases) == matrix.load().counts()[name]
    assert len(set(cases)) == len(cases)
