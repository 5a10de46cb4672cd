"""The daemon's log: one JSON object a line, flushed at once, bounded in size.

Every line has ``t`` (seconds of CLOCK_MONOTONIC) and ``event``. A guest decides how many lines
there are, so two limits hold: on refusals, and on the whole. A guest can also fill the disk that
the log lies on, which must not end the daemon: lines that could not be written are counted, and
the next one that can be written has the count as ``lost``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
        self._bytes_left = max_bytes
        self._lost = 0  # lines since the last one that was written
        self._torn = False  # whether the log ends within a line

    def event(self, event: str, **details: object) -> None:
        """Write one line, or nothing once the log is full. Never raises OSError."""
        if self._bytes_left <= 0:
            return
        lost = {"lost": self._lost} if self._lost else {}
        line = _line(event, details | lost)
        if not self._write(line):
            self._lost += 1
            return
        self._lost = 0
        self._bytes_left -= len(line)
        if self._bytes_left <= 0:
            self._write(_line("log-full", {}))

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
