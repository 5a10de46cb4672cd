"""Whom the stopped vCPU's state points at: a task that touched a bad page, or somebody else.

QEMU prints the registers of the vCPU that could not go on, and for a KVM_EXIT_MEMORY_FAULT the
guest-physical address too (QEMU 11.1, accel/kvm/kvm-all.c).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hostfault.case.model import PAGE_SIZE
from hostfault.guest.crowd import ArmedCrowd, Task


class Blame(enum.StrEnum):
    """Who is on the vCPU when it stops."""

    CULPRIT = "culprit"  # a toucher, on the touching instruction, with its page's address at hand
    ELSEWHERE = "elsewhere"  # a toucher, at another place in user space
    BUSY = "busy"  # a task that touched nothing
    KERNEL = "kernel"  # the guest's kernel: no task can be told
    UNKNOWN = "unknown"  # user space of something that is not of the crowd


@dataclass(frozen=True)
class Finding:
    """What the state at the exit says."""

    blame: Blame
    task: int | None  # the number of the task on the vCPU, if it is of the crowd
    named_gfn: int | None  # the frame that the exit itself names, if it does


def registers(qemu_log: str) -> Mapping[str, int]:
    """The first register dump in QEMU's log, by name; empty if there is none."""
    start = qemu_log.find("RAX=")
    if start < 0:
        return {}
    dump = qemu_log[start : qemu_log.find("EFER=", start)]
    found: dict[str, int] = {}
    for name, value in re.findall(r"\b(R[A-Z0-9]{1,2}|RIP|CPL)\s*=\s*([0-9a-f]+)", dump):
        found.setdefault(name, int(value, 16))
    return found


def named_frame(qemu_log: str) -> int | None:
    """The frame in QEMU's words about a memory fault, if it said any."""
    match = re.search(r"memory region \(0x([0-9a-f]+) ,\+ 0x[0-9a-f]+\)", qemu_log)
    return int(match[1], 16) // PAGE_SIZE if match else None


def judge(qemu_log: str, armed: ArmedCrowd) -> Finding:
    """Look at the registers that QEMU printed at the exit."""
    state = registers(qemu_log)
    blame, task = _whom(state, armed)
    return Finding(blame, task.number if task else None, named_frame(qemu_log))


def _whom(state: Mapping[str, int], armed: ArmedCrowd) -> tuple[Blame, Task | None]:
    if state.get("CPL") != 3:
        return (Blame.KERNEL if state else Blame.UNKNOWN), None
    number = state["R15"] - armed.mark
    if not 0 <= number < len(armed.tasks):
        return Blame.UNKNOWN, None
    task = armed.tasks[number]
    if task.page is None:
        return Blame.BUSY, task
    on_the_spot = state["RIP"] == armed.rip and state["RDI"] == task.address
    return (Blame.CULPRIT if on_the_spot else Blame.ELSEWHERE), task
