"""A cgroup of the agent's own with no room at all: who is put there can be given nothing more.

(Documentation/admin-guide/cgroup-v2.rst.) What a process had before stays charged to the cgroup
that it came from, so that it lives until it asks for something new.
"""

from __future__ import annotations

from pathlib import Path

GROUP = "hostfault-limit"  # the harness finds it in the kernel's log: hostfault/case/trouble.py
LIMITS = {"memory": "memory.max", "hugetlb": "hugetlb.2MB.max"}  # by the controller


class Limit:
    """The cgroup, for one controller."""

    def __init__(self, root: Path, controller: str) -> None:
        """``root`` is where cgroup2 is mounted. Raises OSError: no such controller, for one."""
        (root / "cgroup.subtree_control").write_text(f"+{controller}")
        self._folder = root / GROUP
        self._folder.mkdir(exist_ok=True)
        self._limit = self._folder / LIMITS[controller]
        self._limit.write_text("0")

    def hold(self, pid: int) -> None:
        """Put a process there with all its threads. Raises OSError if it is not there then."""
        (self._folder / "cgroup.procs").write_text(str(pid))
        if str(pid) not in (self._folder / "cgroup.procs").read_text().split():
            raise OSError(f"process {pid} is not in {self._folder}")
        if (found := self._limit.read_text().strip()) != "0":
            raise OSError(f"{self._limit} is {found}, not 0")

    def lift(self) -> None:
        """Let who is there have what it wants."""
        self._limit.write_text("max")
