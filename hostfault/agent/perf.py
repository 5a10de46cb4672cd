"""Count KVM's tracepoints of our own vCPU threads with perf_event_open(2): no root needed.

Counting, as opposed to sampling, shows nothing of anybody else's, so the kernel allows it for
threads of one's own where perf_event_paranoid is 1 or less, or with CAP_PERFMON
(Documentation/admin-guide/perf-security.rst). An event's number stands in tracefs, which must be
readable. A filter (Documentation/trace/events.rst, "Event filtering") picks one guest frame.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EACCES, EAGAIN, EFAULT, EINTR, EPERM
from pathlib import Path

PERF_EVENT_OPEN = 298  # system call number on x86-64
PERF_TYPE_TRACEPOINT = 2  # linux/perf_event.h, like the three below
PERF_FLAG_FD_CLOEXEC = 8
PERF_EVENT_IOC_SET_FILTER = 0x40082406
ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5; all else in the structure is 0: count, all CPUs
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
PAGE_SHIFT = 12
NEEDED = ("kvm_page_fault", "kvm_userspace_exit")
OPTIONAL = ("kvm_try_async_get_page", "kvm_async_pf_ready")
EHWPOISON = 133  # asm-generic/errno.h; Python has no name for it
OTHER_ERROR = 1  # what stands for every other errno of KVM_RUN; no KVM_RUN fails with +1
ANY_REASON = -1  # exits are not told apart by their reason here

_LIBC = ctypes.CDLL(None, use_errno=True)


def filters(gfn: int, first: int, last: int) -> dict[str, tuple[str, str]]:
    """By name of a count: its event, and the filter that picks what concerns one frame.

    ``first`` to ``last`` are the instructions whose page faults count.
    """
    begin, end = gfn << PAGE_SHIFT, (gfn + 1) << PAGE_SHIFT
    silent = f"errno != -{EINTR} && errno != -{EAGAIN}"
    told = f"errno != -{EFAULT} && errno != -{EHWPOISON}"
    of_the_frame = f"fault_address >= {begin:#x} && fault_address < {end:#x}"
    not_there = f"guest_rip < {first:#x} || guest_rip > {last:#x}"
    at_the_place = f"guest_rip >= {first:#x} && guest_rip <= {last:#x}"
    return {
        "there": ("kvm_page_fault", f"{of_the_frame} && {at_the_place}"),
        "elsewhere": ("kvm_page_fault", f"{of_the_frame} && ({not_there})"),
        "started": ("kvm_try_async_get_page", f"gfn == {gfn:#x}"),
        "ready": ("kvm_async_pf_ready", f"gva >= {begin:#x} && gva < {end:#x}"),
        "efault": ("kvm_userspace_exit", f"errno == -{EFAULT}"),
        "ehwpoison": ("kvm_userspace_exit", f"errno == -{EHWPOISON}"),
        "other": ("kvm_userspace_exit", f"errno < 0 && {silent} && {told}"),
    }


@dataclass
class PerfCounts:
    """Counts of one frame at a time, from the first time that it is asked for."""

    tracefs: Path
    how = "perf"
    _events: list[str] = field(default_factory=list)
    _fds: dict[str, list[int]] = field(default_factory=dict)  # by name of a count, one a thread
    _about: tuple[frozenset[int], int, tuple[int, int]] | None = None

    def start(self) -> list[str]:
        """See whether it is allowed, by counting ourselves; returns the events that there are.

        Raises OSError with the reason.
        """
        self.stop()
        for event in NEEDED:
            os.close(_open(self._number(event), 0, ""))
        there = [e for e in OPTIONAL if (self.tracefs / "events" / "kvm" / e / "id").exists()]
        self._events = [*NEEDED, *there]
        return list(self._events)

    def counted(self) -> list[str]:
        """The events that can be counted."""
        return list(self._events)

    def stop(self) -> None:
        """Count no more."""
        for fd in (fd for fds in self._fds.values() for fd in fds):
            os.close(fd)
        self._fds, self._about = {}, None

    def counts(
        self, threads: Collection[int], watched: int | None, place: tuple[int, int]
    ) -> dict[str, object]:
        """Counts of the frame ``watched``, as :meth:`Tracer.counts` tells them.

        They begin with the first call for these threads, frame and place: nothing is known of
        what was before, nor of other frames.
        """
        if watched is None:
            return {**_NOTHING}
        about = (frozenset(threads), watched, place)
        if about != self._about:
            self._watch(*about)
        told = {name: sum(map(_read, fds)) for name, fds in self._fds.items()}
        first, last = place
        elsewhere = told["elsewhere"]
        return {
            **_NOTHING,
            "faults": [
                [watched, first if first == last else 0, told["there"]],
                *([[watched, ELSEWHERE, elsewhere]] if elsewhere else []),
            ],
            "async_started": [[watched, told.get("started", 0)]],
            "async_ready": [[watched, told.get("ready", 0)]],
            "exits": [
                [ANY_REASON, errno, told[name]] for name, errno in _ERRORS.items() if told[name]
            ],
        }

    def count_touches(self, address: int, length: int) -> bool:
        """It cannot: those are other threads' faults, of the host's kernel."""
        del address, length
        return False

    def entries(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Nothing: counts by all keys there are only with tracefs."""
        del event
        return []

    def _watch(self, threads: frozenset[int], gfn: int, place: tuple[int, int]) -> None:
        self.stop()
        self._about = (threads, gfn, place)
        for name, (event, text) in filters(gfn, *place).items():
            if event in self._events:
                self._fds[name] = []
                for thread in threads:
                    self._fds[name].append(_open(self._number(event), thread, text))

    def _number(self, event: str) -> int:
        return int((self.tracefs / "events" / "kvm" / event / "id").read_text())


_NOTHING: Mapping[str, object] = {
    "faults": [],
    "async_started": [],
    "async_ready": [],
    "exits": [],
    "touches": None,
}
ELSEWHERE = 1  # the instruction of faults on the frame that were taken at another place
_ERRORS = {"efault": -EFAULT, "ehwpoison": -EHWPOISON, "other": OTHER_ERROR}


def why_not_allowed(error: OSError) -> str:
    """What forbids it, in a person's words."""
    if error.filename is not None:
        return f"{error.filename} cannot be read: mount tracefs with gid= of your group, mode=750"
    if error.errno in (EACCES, EPERM):
        with suppress(OSError):
            level = PARANOID.read_text().strip()
            return f"{PARANOID} is {level}: 1 or less allows it, or CAP_PERFMON"
    return f"perf_event_open: {error}"


def _open(event: int, thread: int, text: str) -> int:
    """A counter of one tracepoint in one thread (0: this one). Raises OSError."""
    attributes = struct.pack("=IIQ", PERF_TYPE_TRACEPOINT, ATTR_SIZE, event).ljust(ATTR_SIZE, b"\0")
    fd = int(_LIBC.syscall(PERF_EVENT_OPEN, attributes, thread, -1, -1, PERF_FLAG_FD_CLOEXEC))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if text:
        try:
            fcntl.ioctl(fd, PERF_EVENT_IOC_SET_FILTER, text.encode() + b"\0")
        except OSError as error:
            os.close(fd)
            raise OSError(error.errno, f"the filter {text!r}: {error.strerror}") from error
    return fd


def _read(fd: int) -> int:
    return int(struct.unpack("=Q", os.read(fd, 8))[0])
