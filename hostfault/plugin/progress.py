"""Shows what a long phase is waiting for, without getting between pytest's results.

On a terminal: one line, redrawn every second, below the line that pytest is writing. Elsewhere
(a CI log): plain lines, each new wait once, repetitions at most every ten seconds.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from hostfault.plumbing.deadline import now
from hostfault.plumbing.progress import heard_by
from hostfault.plumbing.text import harmless

REDRAW_SECONDS = 1.0
REPEAT_SECONDS = 10.0


class Progress:
    """Shows what is logged while a lab works.

    Make it while pytest does not capture (pytest_configure does not).
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._terminal: int | None = None
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            self._terminal = os.dup(sys.stdout.fileno())
            config.add_cleanup(self._close)
        self._text = ""
        self._since = now()
        self._drawn = False
        self._said: set[str] = set()
        self._printed_at = -REPEAT_SECONDS
        self._lock = threading.Lock()

    @property
    def text(self) -> str:
        """What is waited for now, or was when it ended."""
        return self._text

    def say(self, text: str) -> None:
        """Tell what is waited for from now on."""
        with self._lock:
            text = harmless(text).partition("\n")[0]
            if text != self._text:
                self._text, self._since = text, now()
        if self._terminal is None and threading.current_thread() is threading.main_thread():
            self._print(text)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show it for as long as the ``with`` block lasts; pytest must write nothing in it."""
        self._text, self._since = "", now()
        with heard_by(self.say), self._drawing():
            yield

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Redraw the line every second, on a terminal."""
        if self._terminal is None or not self._config.pluginmanager.hasplugin("terminalreporter"):
            yield
            return
        stop = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(stop,), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()
            if self._drawn:
                self._draw("")

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(REDRAW_SECONDS):
            with self._lock:
                text, seconds = self._text, now() - self._since
            if text:
                self._draw(f"{text} ({seconds:.0f} s)")

    def _draw(self, text: str) -> None:
        """Write the line below the current one and put the cursor back to where it was.

        Control sequences of ECMA-48: EL (erase line), CUU (up), CUF (right).
        """
        assert self._terminal is not None
        writer = self._config.get_terminal_writer()
        column = writer.width_of_current_line
        right = f"\x1b[{column}C" if column else ""
        shown = text[: writer.fullwidth - 1]
        self._drawn = bool(shown)
        os.write(self._terminal, f"\n\r\x1b[2K{shown}\x1b[A\r{right}".encode())

    def _print(self, text: str) -> None:
        reporter = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is None or self._config.get_verbosity() < 0:
            return
        wait = re.sub(r"\d+", "#", text)  # "booting, 3 s" and "booting, 4 s" are one wait
        if wait in self._said and now() - self._printed_at < REPEAT_SECONDS:
            return
        self._said.add(wait)
        self._printed_at = now()
        capture = self._config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(f"... {text}")

    def _close(self) -> None:
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
