"""The daemon's log: one JSON object a line, flushed at once, bounded in size.

Every line has ``t`` (seconds of CLOCK_MONOTONIC) and ``event``. A guest decides how many lines
there are, so two limits hold: on refusals, and on the whole.
"""

from __future__ import annotations

import json
import time
from typing import TextIO

MAX_REFUSALS = 1000
MAX_CHARACTERS = 16 * 1024 * 1024


class EventLog:
    """Writes events to a stream."""

    def __init__(
        self,
        stream: TextIO,
        max_refusals: int = MAX_REFUSALS,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        self._stream = stream
        self._refusals_left = max_refusals
        self._characters_left = max_characters

    def event(self, event: str, **details: object) -> None:
        """Write one line, or nothing once the log is full."""
        if self._characters_left <= 0:
            return
        line = json.dumps({"t": round(time.monotonic(), 6), "event": event} | details)
        self._characters_left -= len(line) + 1
        self._stream.write(line + "\n")
        if self._characters_left <= 0:
            self._stream.write(json.dumps({"t": time.monotonic(), "event": "log-full"}) + "\n")
        self._stream.flush()

    def refused(self, reason: str, **details: object) -> None:
        """Note what was refused and why; after too many, only say that there were too many."""
        if self._refusals_left > 0:
            self.event("refused", reason=reason, **details)
        elif self._refusals_left == 0:
            self.event("refusals-no-longer-logged")
        self._refusals_left -= 1
