"""A page is sent to swap space.

A page is charged to whom has made it (Documentation/admin-guide/cgroup-v2.rst, "Memory Ownership"),
so a child in a cgroup of its own makes it, and that cgroup is told to give it up: memory.reclaim.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

from hostfault.agent.filesystems import punch_hole

GROUP = "hostfault-swap"
PATIENCE = 10.0  # seconds until a page must be out
INTERVAL = 0.01  # seconds between two attempts: writing it to the disk takes a while
_PAGE = os.sysconf("SC_PAGESIZE")

_LIBC = ctypes.CDLL(None, use_errno=True)


def swap_out(root: Path, fd: int, at: int, page: bytes) -> None:
    """Let a range of a file on a tmpfs hold ``page``, in swap space only.

    ``root`` is where cgroup2 is mounted. Raises OSError, TimeoutError if it stays in memory.
    """
    (root / "cgroup.subtree_control").write_text("+memory")
    group = root / GROUP
    group.mkdir(exist_ok=True)
    punch_hole(fd, at, len(page))
    _write_within(group, fd, at, page)
    end = time.monotonic() + PATIENCE
    while _is_in_memory(fd, at, len(page)):
        if time.monotonic() > end:
            raise TimeoutError(f"the page was not swapped out within {PATIENCE:.0f} s")
        try:
            (group / "memory.reclaim").write_text(str(len(page)))
        except BlockingIOError:  # it is on its way to the disk
            time.sleep(INTERVAL)


def _write_within(group: Path, fd: int, at: int, page: bytes) -> None:
    """Write to a file from a process in a cgroup. Raises OSError."""
    child = os.fork()
    if child == 0:
        try:
            (group / "cgroup.procs").write_text("0")
            os._exit(0 if os.pwrite(fd, page, at) == len(page) else 1)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise OSError(code, f"writing in {group}: {os.strerror(abs(code))}")


def _is_in_memory(fd: int, at: int, length: int) -> bool:
    """Whether any page of a range is in the page cache, or in the swap cache (mincore(2))."""
    with mmap.mmap(fd, length, offset=at) as memory:
        held = (ctypes.c_ubyte * (length // _PAGE))()
        first = ctypes.c_char.from_buffer(memory)
        failed = _LIBC.mincore(ctypes.byref(first), ctypes.c_size_t(length), held) != 0
        del first  # or the mapping cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return any(each & 1 for each in held)
