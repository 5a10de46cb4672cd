"""The bisection, for real: a git history on a packaged kernel's source, built and booted."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.bisect import demo
from hostfault.kernel.catalog import load, newest


@pytest.mark.nightly
@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(1200)
def test_the_fix_is_found_in_a_history_that_does_not_always_build_or_boot(tmp_path: Path) -> None:
    # One look at what does not boot will do here: how it is repeated is tested without a machine.
    shown = demo.demonstrate(tmp_path, load()[newest()], ["--retries", "0"])
    assert (shown.code, shown.found) == (0, demo.FIX)
    assert shown.untestable == {demo.DOES_NOT_BUILD, demo.DOES_NOT_BOOT}
    verdicts = {step["subject"]: step["verdicts"] for step in shown.steps}
    assert verdicts[demo.FIX] == "vm-exit"
    assert set(verdicts.values()) >= {"spin", "vm-exit"}
