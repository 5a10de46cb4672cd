"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostfault.case.model import VerdictKind
from hostfault.check.plan import SITUATIONS

PROJECT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["security.md", "back-end.md"])
def test_every_test_that_a_document_names_exists(name: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (PROJECT / "docs" / name).read_text()))
    sources = [path.read_text() for path in (PROJECT / "tests").rglob("test_*.py")]
    defined = {found for text in sources for found in re.findall(r"def (test_\w+)\(", text)}
    assert named - defined == set()
    assert named or name != "security.md"


def test_every_command_that_a_document_names_exists() -> None:
    for document in PROJECT.glob("docs/*.md"):
        for command in set(re.findall(r"\bci/[a-z-]+", document.read_text())):
            assert (PROJECT / command).exists(), f"{command}, in {document.name}"


def test_the_run_of_each_verdict_is_a_case_of_that_truth_and_was_kept() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| `([a-z-]+)` \|.*\| `([\w.-]+)\.json` \|$",
        (PROJECT / "docs" / "verdicts.md").read_text(),
        re.MULTILINE,
    )
    truth = {each.name: each.truth for each in SITUATIONS}
    assert sorted(verdict for verdict, _, _ in rows) == sorted(VerdictKind)
    for verdict, situation, kept in rows:
        assert truth[situation] == verdict
        assert kept.startswith(f"{verdict}.")
        assert (PROJECT / "tests" / "observations" / f"{kept}.json").exists()
