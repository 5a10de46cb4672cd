"""Count KVM's tracepoints by guest frame, in the kernel, with hist triggers.

Source: Documentation/trace/histogram.rst (hist triggers) and ftrace.rst (instances). A tracing
instance of our own keeps the counts apart from what else is traced on a shared host; the key
``common_pid`` keeps our vCPUs apart from those of other virtual machines.
"""

from __future__ import annotations

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
}

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


class Tracer:
    """Tracepoint counts in a tracing instance of our own."""

    def __init__(self, name: str, tracefs: Path = TRACEFS) -> None:
        self._instance = tracefs / "instances" / name
        self._events: list[str] = []

    def start(self) -> list[str]:
        """Begin to count from zero; returns the events that this kernel has.

        Raises OSError if tracefs is not there or may not be written.
        """
        self.stop()
        self._instance.mkdir(exist_ok=True)
        for event, keys in KEYS.items():
            folder = self._instance / "events" / "kvm" / event
            if not folder.is_dir():
                continue
            fields = (folder / "format").read_text()
            known = [key for key in keys if re.search(rf"\b{key};", fields)]
            (folder / "trigger").write_text(
                f"hist:keys={','.join(['common_pid', *known])}:size=16384\n"
            )
            self._events.append(event)
        return self._events

    def stop(self) -> None:
        """Remove the instance, and with it its triggers."""
        for event in self._events:
            trigger = self._instance / "events" / "kvm" / event / "trigger"
            with suppress(OSError):
                for line in trigger.read_text().splitlines():
                    if line and not line.startswith("#"):
                        trigger.write_text(f"!{line.split(' [')[0]}\n")
        self._events = []
        with suppress(OSError):
            self._instance.rmdir()

    def counts(
        self, threads: Collection[int], watched: int | None = None, most: int = 64
    ) -> dict[str, object]:
        """Counts since :meth:`start` for the given vCPU threads.

        ``faults`` is a list of [gfn, rip, count], most frequent first, at most ``most`` long and
        then those of the ``watched`` frame; ``async_started`` the same of [gfn, count];
        ``async_ready`` is one number.
        """
        faults: Counter[tuple[int, int]] = Counter()
        started: Counter[int] = Counter()
        for keys, count in self._read("kvm_page_fault", threads):
            faults[keys.get("fault_address", 0) >> 12, keys.get("guest_rip", 0)] += count
        for keys, count in self._read("kvm_try_async_get_page", threads):
            started[keys.get("gfn", 0)] += count
        ready = sum(count for _, count in self._read("kvm_async_pf_ready", threads))
        return {
            "faults": [
                [gfn, rip, count]
                for place, ((gfn, rip), count) in enumerate(faults.most_common())
                if place < most or gfn == watched
            ],
            "async_started": [
                [gfn, count]
                for place, (gfn, count) in enumerate(started.most_common())
                if place < most or gfn == watched
            ],
            "async_ready": ready,
        }

    def entries(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Counts of one event since :meth:`start`, by all its keys; of every thread there is."""
        if event not in self._events:
            return []
        return histogram((self._instance / "events" / "kvm" / event / "hist").read_text())

    def _read(self, event: str, threads: Collection[int]) -> list[tuple[dict[str, int], int]]:
        return [entry for entry in self.entries(event) if entry[0].get("common_pid") in threads]
