"""What tests that compile a kernel need of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.kernel.buildroot import build_root, suite_for
from hostfault.kernel.catalog import load, newest
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.errors import NoBuildRootError


@pytest.fixture
def build_root_allowed(tmp_path: Path) -> None:
    """Skip where bubblewrap can enter no root: in a chroot, for one."""
    cache = default_cache()
    tree = tmp_path / "tree"
    tree.mkdir()
    try:
        root = build_root(cache, suite_for(load()[newest()].release))
        root.run(tree, ["true"], what="entering the build root", patience=60.0)
    except NoBuildRootError as error:
        pytest.skip(str(error).partition("\n")[0])
    finally:
        cache.close()
