"""The daemon's log: one JSON object a line, flushed at once, bounded in size.

Every line has ``t`` (seconds of CLOCK_MONOTONIC) and ``event``. A guest decides how many lines
there are, so two limits hold: on refusals, and on the whole. Half of the log is for how it all
began. Whenever the other half is full it is begun anew, with a line ``log-cut`` that has the
number of lines ``lost``, and with the lines that still hold: what is mapped, what is memory. So
the log always tells what is mapped now, however often the guest mapped something.

A guest can also fill the disk that the log lies on, which must not end the daemon: lines that could
not be written are counted, and the next one that can be written has the count as ``lost``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Hashable, Mapping
from typing import BinaryIO

MAX_REFUSALS = 1000
MAX_BYTES = 16 * 1024 * 1024


class EventLog:
    """Writes events to a stream, which must not have a buffer."""

    def __init__(
        self, stream: BinaryIO, max_refusals: int = MAX_REFUSALS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._stream = stream
        self._refusals_left = max_refusals
        self._kept = max_bytes // 2  # bytes that are never cut
        self._max = max_bytes
        self._size = 0  # bytes written
        self._lines = 0  # written since the part that may be cut began
        self._began: int | None = None  # where that part begins
        self._lost = 0  # lines since the last one that was written
        self._torn = False  # whether the log ends within a line
        self._full = False  # whether it takes nothing any more
        self._standing: dict[Hashable, bytes] = {}  # lines that still hold

    def event(
        self,
        event: str,
        *,
        begins: Hashable = None,
        ends: Hashable = None,
        **details: object,
    ) -> None:
        """Write one line. Never raises OSError.

        It holds until another one ``ends`` what it ``begins``: what there may be many of at a time
        must be bounded.
        """
        self._standing.pop(ends, None)
        lost = {"lost": self._lost} if self._lost else {}
        line = _line(event, details | lost)
        if self._size + len(line) > self._max and not self._full:
            self._cut()
        if not self._full:
            self._put(line)
        if begins is not None:
            self._standing[begins] = _line(event, details)

    def _put(self, line: bytes) -> None:
        if not self._write(line):
            self._lost += 1
            return
        self._lost = 0
        self._size += len(line)
        if self._began is None and self._size >= self._kept:
            self._began = self._size
        self._lines += self._began is not None

    def _cut(self) -> None:
        """Begin the second half anew; what can't be cut (a pipe) is full for good."""
        begin = self._began or 0
        try:
            self._stream.truncate(begin)
            self._stream.seek(begin)
        except (OSError, ValueError):
            self._full = True
            self._write(_line("log-full", {}))
            return
        lost, self._lost = self._lost + self._lines, 0
        self._size, self._lines, self._torn = begin, 0, False
        for line in (_line("log-cut", {"lost": lost}), *self._standing.values()):
            self._put(line)

    def refused(self, reason: str, **details: object) -> None:
        """Note what was refused and why; after too many, only say that there were too many."""
        if self._refusals_left > 0:
            self.event("refused", reason=reason, **details)
        elif self._refusals_left == 0:
            self.event("refusals-no-longer-logged")
        self._refusals_left -= 1

    def _write(self, line: bytes) -> bool:
        """Write a line; returns whether all of it could be written."""
        data = b"\n" + line if self._torn else line
        try:
            written = self._stream.write(data)
        except OSError:
            return False
        if written:
            self._torn = written < len(data)
        return written == len(data)


def _line(event: str, details: Mapping[str, object]) -> bytes:
    record = {"t": round(time.monotonic(), 6), "event": event, **details}
    return json.dumps(record).encode("ascii") + b"\n"
