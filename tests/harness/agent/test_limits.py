"""A cgroup without room and a swap space, as files; what the kernel does with them needs a host."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.agent.cgroup import GROUP, Limit
from hostfault.agent.loopdisk import SwapDisk
from hostfault.case.trouble import IN_OWN_GROUP

PAGE = 4096


@pytest.mark.parametrize(
    ("controller", "name"), [("memory", "memory.max"), ("hugetlb", "hugetlb.2MB.max")]
)
def test_a_process_is_put_where_nothing_is_left_until_that_is_lifted(
    tmp_path: Path, controller: str, name: str
) -> None:
    limit = Limit(tmp_path, controller)
    assert (tmp_path / "cgroup.subtree_control").read_text() == f"+{controller}"
    assert (tmp_path / GROUP / name).read_text() == "0"
    limit.hold(os.getpid())
    assert (tmp_path / GROUP / "cgroup.procs").read_text() == str(os.getpid())
    limit.lift()
    assert (tmp_path / GROUP / name).read_text() == "max"


def test_a_limit_that_somebody_has_changed_is_told(tmp_path: Path) -> None:
    limit = Limit(tmp_path, "memory")
    (tmp_path / GROUP / "memory.max").write_text("4096")
    with pytest.raises(OSError, match=r"memory\.max is 4096, not 0"):
        limit.hold(os.getpid())


def test_the_rules_know_the_cgroup_by_its_name() -> None:
    assert f"oom_memcg=/{GROUP}" == IN_OWN_GROUP


def test_a_swap_space_has_the_header_of_mkswap(tmp_path: Path) -> None:
    file = tmp_path / "disk"
    file.write_bytes(bytes(16 * PAGE))
    SwapDisk.make(cast("Any", SimpleNamespace(size=16 * PAGE)), file)
    head = file.read_bytes()[:PAGE]
    assert struct.unpack_from("=3I", head, 1024) == (1, 15, 0)
    assert head.endswith(b"SWAPSPACE2")
    assert len(file.read_bytes()) == 16 * PAGE
