from __future__ import annotations

from pathlib import Path

import pytest
from nightly_suite import Suite

pytest.importorskip("pytest_reportlog", reason="the extra 'nightly' is not installed: ci/nightly")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Suite(tmp_path)
