"""CPU time of a QEMU's vCPU threads, and states, from /proc (proc(5), ``/proc/pid/stat``)."""

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
    threads = {}
    with suppress(OSError):
        for folder in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):  # a thread may end while we look
                name, seconds = parse_stat((folder / "stat").read_text())
                if name.startswith("CPU "):
                    threads[int(folder.name)] = seconds
    return threads
