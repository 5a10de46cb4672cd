"""The fork of a snapshot for the case that comes next, loaded while a case runs.

What a case waits for most is an emulated CPU that runs things for the first time, on one core of
two. So the next fork comes up to where its guest would go on, and waits there.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from hostfault.plumbing.errors import HostfaultError

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Begun(Generic[T]):
    entry: Path  # of the snapshot
    logs: Path  # where its logs lie until a case takes it
    stack: ExitStack  # what ends it
    made: Future[T]


class Ahead(Generic[T]):
    """One fork at a time, in a thread of its own. A context manager: at its end none is left.

    The thread lives as long as this: a child gets a signal when the thread ends that started it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "ahead")
        self._begun: _Begun[T] | None = None

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drop()
        self._pool.shutdown()

    def begin(self, entry: Path, beside: Path, load: Callable[[ExitStack, Path], T]) -> None:
        """Begin to load a snapshot, by ``load(stack, folder for its logs)``.

        The logs are in a hidden folder in the directory ``beside``, until they are moved.
        """
        self.drop()
        logs, stack = Path(tempfile.mkdtemp(prefix=".next-", dir=beside)), ExitStack()
        self._begun = _Begun(entry, logs, stack, self._pool.submit(load, stack, logs))

    def take(self, entry: Path, stack: ExitStack, folder: Path) -> T | None:
        """The fork of that snapshot, if one was begun and came up; its logs are in ``folder``.

        ``stack`` ends it from now on. None if there is none: whoever asks loads one himself.
        """
        begun = self._begun
        if begun is None or begun.entry != entry:
            self.drop()
            return None
        try:
            made = begun.made.result()
        except HostfaultError as error:
            log.info("the fork that was loaded ahead is of no use: %s", error)
            self.drop()
            return None
        self._begun = None
        stack.push(begun.stack.pop_all())
        for path in begun.logs.iterdir():
            path.rename(folder / path.name)  # whoever writes to it goes on
        begun.logs.rmdir()
        return made

    def drop(self) -> None:
        """End the fork that was begun, if there is one."""
        begun, self._begun = self._begun, None
        if begun is None:
            return
        begun.made.exception()  # wait: what it starts must be on the stack
        begun.stack.close()
        for path in begun.logs.iterdir():
            path.unlink()
        begun.logs.rmdir()
