"""A series as mails, for real: on the packaged kernel's own source."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hostfault.kernel.catalog import load, newest
from hostfault.kernel.fetch import fetch_packages
from hostfault.kernel.series import touched
from hostfault.plumbing.cache import default_cache
from hostfault.told import mails

SERIES = "tell-user-space"


@pytest.mark.timeout(600)  # the first time the source is fetched
def test_git_am_takes_the_mails_on_the_newest_kernels_source(tmp_path: Path) -> None:
    cache = default_cache()
    try:
        written = mails.post(SERIES, tmp_path / "mails", cache)
        entry = load()[newest()]
        source = f"linux-source-{'.'.join(entry.release.split('.')[:2])}"
        archive = fetch_packages(cache, entry.suite, [source]) / "usr/src" / f"{source}.tar.xz"
    finally:
        cache.close()
    tree = tmp_path / "tree"
    mails.extract(archive, touched(written[1:]), tree)
    who = ("-c", "user.name=A U Thor", "-c", "user.email=author@example.com")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "base"]):
        subprocess.run(["git", *who, *words], cwd=tree, check=True, timeout=60)
    line = ["git", *who, "am", "-q", *map(str, written[1:])]
    subprocess.run(line, cwd=tree, check=True, timeout=60)
    assert "KVM_CAP_EXIT_ON_UNBACKED" in (tree / "Documentation/virt/kvm/api.rst").read_text()
    assert "task-error" in written[0].read_text()
