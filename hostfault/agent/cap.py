"""Keeps what children write within bounds: consoles and logs, which a guest can fill at will.

QEMU and the others write to these files themselves, all at their ends (O_APPEND), so that a file
can be cut under their hands: then its first half stays, and of the rest the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

LIMIT = 16 << 20  # bytes of a file
TAIL = 64 << 10  # bytes of its end that stay, which is as much as is ever read of it at a time
INTERVAL = 0.5  # seconds between two looks; what is written meanwhile goes beyond the limit
MARK = b"\n[hostfault: %d bytes were cut here]\n"


def cut(path: Path, limit: int = LIMIT) -> bool:
    """Cut a file that is longer than ``limit``; returns whether it was."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(path, flags)
    except OSError:
        return False  # gone, or something that nobody writes logs to
    try:
        size = os.fstat(fd).st_size
        if size <= limit:
            return False
        kept = min(TAIL, limit // 4)
        end = os.pread(fd, kept, size - kept)
        os.ftruncate(fd, limit // 2)
        os.write(fd, MARK % (size - limit // 2 - len(end)) + end)
    except OSError:  # a disk that is full takes the end no more, but was given room
        return True
    finally:
        os.close(fd)
    return True


class Cap:
    """Looks after all ``*.log`` of a directory, in a thread, until it is closed."""

    def __init__(self, directory: Path, limit: int = LIMIT, interval: float = INTERVAL) -> None:
        self._directory, self._limit, self._interval = directory, limit, interval
        self._over = threading.Event()
        self.idle = threading.Lock()  # held while a child is forked: no thread is at work then
        self._thread = threading.Thread(target=self._look_after, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(10.0)

    def _look_after(self) -> None:
        while not self._over.wait(self._interval):
            with self.idle, contextlib.suppress(OSError):  # the directory may be going
                for path in self._directory.glob("*.log"):
                    cut(path, self._limit)
