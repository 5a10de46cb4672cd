"""CPU time of a QEMU's vCPU threads, states, and mappings, from /proc (proc(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def parse_stat(text: str) -> tuple[str, float]:
    """Name and CPU seconds (user + system) from the text of a ``stat`` file.

    The name may hold spaces and parentheses ("CPU 0/KVM"), so the fields are counted from the
    last closing one.
    """
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return name, (int(fields[11]) + int(fields[12])) / _TICKS


def state_of(pid: int) -> str:
    """The state of a process: "R", "S", "T" for stopped, ... Raises OSError."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def vcpu_threads(pid: int) -> dict[int, float]:
    """CPU seconds of each vCPU thread of a QEMU started with ``debug-threads=on``, by thread id."""
    return threads_of(pid, "CPU ")


def threads_of(pid: int, beginning: str) -> dict[int, float]:
    """CPU seconds of each thread of a process whose name begins so, by thread id."""
    threads = {}
    with suppress(OSError):
        for folder in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):  # a thread may end while we look
                name, seconds = parse_stat((folder / "stat").read_text())
                if name.startswith(beginning):
                    threads[int(folder.name)] = seconds
    return threads


_HUGE = ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped")


def huge_in(text: str, address: int) -> tuple[int, int]:
    """What of the mapping at an address has a page, and what of that one as large as 2 MiB; bytes.

    ``text`` is that of a ``smaps`` file, whose numbers are in KiB. Raises LookupError.
    """
    counts: dict[str, int] | None = None
    for line in text.splitlines():
        first, *rest = line.split(maxsplit=2)
        if not first.endswith(":"):  # the line with which a mapping begins
            if counts is not None:
                break
            begin, end = (int(each, 16) for each in first.split("-"))
            counts = {} if begin <= address < end else None
        elif counts is not None and rest[0].isdigit():
            counts[first[:-1]] = int(rest[0]) << 10
    if counts is None:
        raise LookupError(f"nothing is mapped at {address:#x}")
    return counts.get("Rss", 0), sum(counts.get(name, 0) for name in _HUGE)


def mappings_of(pid: int, file: os.stat_result, path: str) -> list[list[int]]:
    """Where a process has a file mapped: [address, length, offset] of each range (proc(5), maps).

    By device and inode: a program in another mount namespace may have opened it, which changes its
    path. Some file systems tell proc(5) another device than stat(2): there the path will do.
    """
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    ranges = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        extent, _, offset, on, inode, *name = line.split(maxsplit=5)
        begin, end = (int(each, 16) for each in extent.split("-"))
        if int(inode) == file.st_ino and (on == device or name == [path]):
            ranges.append([begin, end - begin, int(offset, 16)])
    return ranges
