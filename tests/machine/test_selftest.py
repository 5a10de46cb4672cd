"""The witness, for real: the selftest and hostfault on the newest packaged kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.kernel.catalog import newest
from hostfault.plumbing.cache import default_cache
from hostfault.witness import build, compare
from hostfault.witness.__main__ import compare_on

# One access that spins, one that no asynchronous fault is taken for, both with their controls.
TESTS = ("zero.apf-user.load", "zero.irqs-off.load", "present.apf-user.load", "late.apf-user.load")


@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(600)  # the first time its framework is fetched and unpacked
def test_the_witness_and_hostfault_agree_on_the_newest_kernel(tmp_path: Path) -> None:
    cache = default_cache()
    try:
        report = compare_on(newest(), build.selftest(cache), TESTS, cache, tmp_path)
    finally:
        cache.close()
    assert compare.exit_code([report]) == compare.AGREE, compare.table([report])
    found = {row.name: row.witness.verdict for row in report.rows}
    assert found == {
        "present.apf-user.load": "ok",
        "late.apf-user.load": "ok",
        "zero.apf-user.load": "spin",
        "zero.irqs-off.load": "exit",
    }


@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(600)
def test_the_kernels_checkpatch_has_nothing_to_say_about_the_selftest() -> None:
    cache = default_cache()
    try:
        assert build.checkpatch(cache) == ""
    finally:
        cache.close()
