"""Count KVM's tracepoints by guest frame, in the kernel, with hist triggers.

Source: Documentation/trace/histogram.rst (hist triggers) and ftrace.rst (instances). A tracing
instance of our own keeps the counts apart from what else is traced on a shared host; the key
``common_pid`` keeps our vCPUs apart from those of other virtual machines.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

TRACEFS = Path("/sys/kernel/tracing")

# event -> the fields it is counted by, after the thread; a kernel without a field counts without
KEYS: Mapping[str, tuple[str, ...]] = {
    "kvm_page_fault": ("guest_rip", "fault_address"),
    "kvm_try_async_get_page": ("gfn",),
    "kvm_async_pf_ready": ("gva",),
    "kvm_userspace_exit": ("reason", "errno"),
}

TOUCHES = ("exceptions", "page_fault_kernel")  # of the host's kernel; only those that are asked for

ANYWHERE = (0, (1 << 64) - 1)  # the first and the last instruction of a guest

_NAME = "hostfault"
_ENTRY = re.compile(r"\{ (?P<keys>[^}]*)\} hitcount:\s*(?P<count>\d+)")


def histogram(text: str) -> list[tuple[dict[str, int], int]]:
    """Read a ``hist`` file: for each entry its keys as numbers, and its hit count."""
    entries = []
    for match in _ENTRY.finditer(text):
        keys = {}
        for part in match["keys"].split(","):
            name, _, value = part.partition(":")
            keys[name.strip()] = int(value)
        entries.append((keys, int(match["count"])))
    return entries


def instance_name() -> str:
    """The name for this process's instance.

    It tells whether its owner lives: a pid means something in its own pid namespace only.
    """
    return f"{_NAME}-{_namespace()}-{os.getpid()}"


class Tracer:
    """Tracepoint counts in a tracing instance of our own."""

    how = "tracefs"

    def __init__(self, name: str, tracefs: Path = TRACEFS) -> None:
        self._instance = tracefs / "instances" / name
        self._events: list[str] = []
        self._touches: Path | None = None

    def start(self) -> list[str]:
        """Begin to count from zero; returns the events that are counted now.

        Of :data:`KEYS` only those are missing that this kernel does not have. Raises OSError if
        tracefs is not there or may not be written, or if an event that is there can't be counted.
        """
        self.stop()
        _sweep(self._instance.parent)
        self._instance.mkdir(exist_ok=True)
        try:
            for event, keys in KEYS.items():
                if (self._instance / "events" / "kvm" / event).is_dir():
                    self._count(event, keys)
                    self._events.append(event)
        except OSError:
            self.stop()
            raise
        return list(self._events)

    def counted(self) -> list[str]:
        """The events that are counted now."""
        return list(self._events)

    def count_touches(self, address: int, length: int) -> bool:
        """Count the page faults that the host's kernel takes in a range of user memory.

        Whoever's memory that is: of two processes with the same address, both count. False for a
        kernel without that tracepoint. Raises OSError with the reason.
        """
        folder = self._instance.joinpath("events", *TOUCHES)
        if not folder.is_dir():
            return False
        wanted = f"if address >= {address:#x} && address < {address + length:#x}"
        (folder / "trigger").write_text(f"hist:keys=common_pid:size=256 {wanted}\n")
        self._touches = folder / "hist"
        return True

    def stop(self) -> None:
        """Remove the instance, and with it its triggers."""
        self._events, self._touches = [], None
        _remove(self._instance)

    def _count(self, event: str, keys: Collection[str]) -> None:
        """Set an event's trigger, and see that it is set. Raises OSError with the reason."""
        folder = self._instance / "events" / "kvm" / event
        if not (folder / "hist").exists():
            raise OSError(f"{event} can't be counted: the kernel has no CONFIG_HIST_TRIGGERS")
        fields = (folder / "format").read_text()
        known = [key for key in keys if re.search(rf"\b{key};", fields)]
        wanted = f"hist:keys={','.join(['common_pid', *known])}"
        try:
            (folder / "trigger").write_text(f"{wanted}:size=16384\n")
        except OSError as error:
            raise OSError(f"{event} can't be counted: {error}\n{self._error_log()}") from error
        if not any(line.startswith(wanted) for line in _triggers(folder)):
            raise OSError(f"{event} can't be counted: its trigger is not set\n{self._error_log()}")

    def _error_log(self) -> str:
        """What tracefs has to say about the last command (ftrace.rst, "error_log")."""
        try:
            return "\n".join((self._instance / "error_log").read_text().splitlines()[-3:])
        except OSError:
            return ""

    def counts(
        self,
        threads: Collection[int],
        watched: int | None = None,
        place: tuple[int, int] = ANYWHERE,  # noqa: ARG002 (all of them are counted)
        most: int = 64,
    ) -> dict[str, object]:
        """Counts since :meth:`start` for the given vCPU threads.

        ``faults`` is a list of [gfn, rip, count], most frequent first, at most ``most`` long and
        then those of the ``watched`` frame; ``async_started`` and ``async_ready`` the same of
        [gfn, count] (kvm_async_pf_ready's "gva" is a guest-physical address where two-dimensional
        paging is on); ``exits`` is a list of [reason, errno, count]; ``touches`` are those of
        :meth:`count_touches`, by whatever thread, None: they are not counted.
        """
        faults: Counter[tuple[int, int]] = Counter()
        started: Counter[int] = Counter()
        ready: Counter[int] = Counter()
        for keys, count in self._read("kvm_page_fault", threads):
            faults[keys.get("fault_address", 0) >> 12, keys.get("guest_rip", 0)] += count
        for keys, count in self._read("kvm_try_async_get_page", threads):
            started[keys.get("gfn", 0)] += count
        for keys, count in self._read("kvm_async_pf_ready", threads):
            ready[keys.get("gva", 0) >> 12] += count

        def first(counts: Counter[int]) -> list[list[int]]:
            return [
                [gfn, count]
                for place, (gfn, count) in enumerate(counts.most_common())
                if place < most or gfn == watched
            ]

        return {
            "faults": [
                [gfn, rip, count]
                for place, ((gfn, rip), count) in enumerate(faults.most_common())
                if place < most or gfn == watched
            ],
            "async_started": first(started),
            "async_ready": first(ready),
            "exits": [
                [keys.get("reason", 0), _signed(keys.get("errno", 0)), count]
                for keys, count in self._read("kvm_userspace_exit", threads)
            ],
            "touches": self._count_of_touches(),
        }

    def _count_of_touches(self) -> int | None:
        if self._touches is None:
            return None
        return sum(count for _, count in histogram(self._touches.read_text()))

    def entries(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Counts of one event since :meth:`start`, by all its keys; of every thread there is."""
        if event not in self._events:
            return []
        return histogram((self._instance / "events" / "kvm" / event / "hist").read_text())

    def _read(self, event: str, threads: Collection[int]) -> list[tuple[dict[str, int], int]]:
        return [entry for entry in self.entries(event) if entry[0].get("common_pid") in threads]


def _signed(number: int) -> int:
    """An int of 32 bits that a histogram shows as one without a sign, of 32 or of 64 bits."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number


def _triggers(folder: Path) -> list[str]:
    """The triggers of an event, one a line."""
    lines = (folder / "trigger").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _remove(instance: Path) -> None:
    """Remove an instance and its triggers; nothing happens if there is none."""
    for event in (*(("kvm", each) for each in KEYS), TOUCHES):
        folder = instance.joinpath("events", *event)
        with suppress(OSError):
            for line in _triggers(folder):
                (folder / "trigger").write_text(f"!{line.split(' [')[0]}\n")
    with suppress(OSError):
        instance.rmdir()


def _sweep(instances: Path) -> None:
    """Remove the instances of agents that were killed; no one else's."""
    prefix = f"{_NAME}-{_namespace()}-"
    for instance in instances.glob(f"{prefix}*"):
        pid = instance.name.removeprefix(prefix)
        if pid.isdecimal() and not _lives(int(pid)):
            _remove(instance)


def _namespace() -> int:
    """What tells this process's pid namespace from others."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
