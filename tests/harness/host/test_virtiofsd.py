"""The back-end that a person names in place of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hostfault.case.settings import Settings
from hostfault.host.virtiofsd import find_virtiofsd, in_words
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import UsageError
from hostfault.run.lab import Lab


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "some-virtiofsd"
    path.write_bytes(b"program")
    path.chmod(0o755)
    return path


def test_it_is_found_by_its_path_and_in_the_path(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_virtiofsd(str(program)) == program
    monkeypatch.chdir(program.parent)
    assert find_virtiofsd(f"./{program.name}") == program
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_virtiofsd(program.name) == program


def test_one_that_may_not_be_executed_is_refused(program: Path) -> None:
    program.chmod(0o644)
    for name in (str(program), "/no/such/program"):
        with pytest.raises(UsageError, match=name):
            find_virtiofsd(name)


def test_the_evidence_tells_one_build_from_another(program: Path) -> None:
    assert in_words(program) == f"{program} (sha256 {hashlib.sha256(b'program').hexdigest()})"


def test_a_mistyped_one_is_told_before_anything_is_made(tmp_path: Path) -> None:
    settings = Settings(host="emulated", virtiofsd=("/no/such/program",))
    with Lab(settings, Cache(tmp_path / "cache")) as lab, pytest.raises(UsageError):
        lab.facts()
    assert not (tmp_path / "cache" / "host-images").exists()
