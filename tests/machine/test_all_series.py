"""Every series of kernels/patches, as the kernel's own checkpatch and its newest source see it."""

from __future__ import annotations

import pytest

from hostfault import checkpatch


def test_every_series_applies_and_passes_checkpatch(capsys: pytest.CaptureFixture[str]) -> None:
    code = checkpatch.main([])
    assert code == 0, capsys.readouterr().out
