"""A back-end in place of ours, in real guests: ours as if somebody else had made it, Debian's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from hostfault.backing.virtiofs_dax import LOG
from hostfault.case.model import Scenario, VerdictKind
from hostfault.case.record import Record
from hostfault.case.settings import Settings
from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.progress import heard_by
from hostfault.run.lab import Lab

pytestmark = pytest.mark.nightly
WHERE = f"{os.environ.get('PATH', os.defpath)}:/usr/libexec:/usr/lib/qemu"
RIGHT = {
    ("none", "load"): VerdictKind.OK,
    ("none", "write"): VerdictKind.OK,
    ("guest", "load"): VerdictKind.TASK_ERROR,
    ("zero", "load"): VerdictKind.SPIN,
    ("zero", "store"): VerdictKind.SPIN,
    ("middle", "write"): VerdictKind.SPIN,
}


def run(program: Path, fault: str, access: str, folder: Path) -> Record:
    settings = Settings(host="emulated", virtiofsd=(str(program),))
    scenario = Scenario("virtiofs-dax", fault, access, async_pf=True)
    with heard_by(print), Lab(settings) as lab:
        return lab.run("test", scenario, folder)


@pytest.mark.parametrize(("fault", "access"), RIGHT)
def test_a_foreign_back_end_has_the_verdicts_of_ours(
    foreign_virtiofsd: Path, tmp_path: Path, fault: str, access: str
) -> None:
    record = run(foreign_virtiofsd, fault, access, tmp_path)
    assert record.verdict.kind is RIGHT[fault, access]
    assert str(foreign_virtiofsd) in record.facts.back_end
    assert "a foreign program listens" in (tmp_path / LOG).read_text()


def test_a_back_end_that_maps_nothing_is_an_error_that_says_so(tmp_path: Path) -> None:
    found = shutil.which("virtiofsd", path=WHERE)
    if found is None:
        pytest.skip("needs a virtiofsd (Debian: apt-get install virtiofsd)")
    with pytest.raises(SetupError, match="has no DAX window"):
        run(Path(found), "none", "load", tmp_path)
