"""The one channel of progress: what is logged below "hostfault" at level INFO.

Whoever works logs what it waits for; whoever runs it decides who hears of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Heard(logging.Handler):
    """Passes each message on."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one message on."""
        self._say(record.getMessage())


@contextmanager
def heard_by(say: Callable[[str], None]) -> Iterator[None]:
    """Tell ``say`` what is logged while the block lasts, and nobody else."""
    logger, handler = logging.getLogger("hostfault"), _Heard(say)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        logger.removeHandler(handler)
