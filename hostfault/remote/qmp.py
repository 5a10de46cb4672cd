"""QMP: a recorder that misses nothing, for callers that do not speak asyncio.

Specification: QEMU's docs/interop/qmp-spec.rst. The library qemu.qmp does the protocol; here a
background thread runs its event loop, and every message in either direction is kept.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPClient, QMPError
from qemu.qmp.message import Message

from hostfault.case.model import Event
from hostfault.plumbing.deadline import Deadline, now, poll
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError

T = TypeVar("T")

ANSWER = 15.0  # seconds for one answer, unless somebody has more patience
SLICE = 0.1  # seconds after which a wait looks whether it is in vain

# Every message is in the transcript, and what goes wrong is raised: no need to print it too.
logging.getLogger("qemu.qmp").propagate = False
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Line:
    """A stream to a QEMU that is there before QEMU is, and does not end with it."""

    stream: socket.socket
    is_closed: Callable[[], bool]  # whether QEMU has closed its end


class _Client(QMPClient):
    """A client that shows every message to the recorder before anything else sees it."""

    recorder: Recorder

    def _cb_inbound(self, msg: Message) -> Message:
        self.recorder.keep("<-", msg)
        return super()._cb_inbound(msg)

    def _cb_outbound(self, msg: Message) -> Message:
        self.recorder.keep("->", msg)
        return super()._cb_outbound(msg)


class Recorder:
    """A QMP connection. Use it as a context manager; connect before the first vCPU runs."""

    def __init__(
        self, name: str, transcript: Path, *, host: bool = False, patience: float = ANSWER
    ) -> None:
        """``patience`` is in seconds, for one answer."""
        self._name = name
        self._patience = patience
        self._host = host
        self.version = ""  # of QEMU, as its greeting says
        self._events: list[Event] = []
        self._changed = threading.Condition()
        self._transcript = transcript.open("a", encoding="utf-8")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp-{name}")
        self._thread.daemon = True
        self._client = self._new_client()
        self._is_closed: Callable[[], bool] = lambda: False  # see Line

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.disconnect()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            self._loop.close()
            self._transcript.close()

    def connect(
        self, path: Path, deadline: Deadline, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Connect to QEMU's QMP socket and negotiate; try again until the deadline.

        ``alive`` is called before each attempt and raises if QEMU is known to be gone.

        A forwarded port accepts before QEMU listens behind it, so a refused or dropped
        connection is tried again. Raises :class:`~hostfault.plumbing.errors.DeadlineError`.
        """

        def attempt() -> bool | None:
            alive()
            try:
                self._wait(self._open(path), deadline.left() + 0.1)
            except (QMPError, OSError, TimeoutError, AssertionError) as error:
                # qemu.qmp asserts its own state when the peer hangs up right after the greeting,
                # and a client that was cut off half-way stays unusable.
                self._client = self._new_client()
                deadline.saw(f"{type(error).__name__}: {error}")
                return None
            return True

        poll(deadline, attempt, interval=0.05)

    def pick_up(self, line: Line, deadline: Deadline, alive: Callable[[], None]) -> None:
        """Wait for the greeting of a QEMU at the other end of a line, and negotiate.

        ``alive`` is called now and then, and raises if QEMU is known to be gone. Raises
        :class:`~hostfault.plumbing.errors.DeadlineError`.
        """
        connecting = self._begin(self._client.connect(line.stream))

        def connected() -> bool | None:
            alive()
            with suppress(TimeoutError):
                connecting.result(SLICE)
                return True
            return None

        try:
            poll(deadline, connected, interval=0.0)
        except HostfaultError:
            connecting.cancel()
            self._client = self._new_client()  # one that was cut off half-way stays unusable
            raise
        self._is_closed = line.is_closed

    def go_on(self, line: Line, version: str) -> None:
        """Go on with a line on which everything was negotiated; QEMU says nothing by itself then.

        ``version`` is QEMU's. Only a command shows whether it answers.
        """
        self._client.await_greeting = self._client.negotiate = False
        self._wait(self._client.connect(line.stream), 5.0)
        self.version = version
        self._is_closed = line.is_closed

    def _new_client(self) -> _Client:
        client = _Client(self._name)
        client.recorder = self
        return client

    def disconnect(self) -> None:
        """Hang up; the recorder and its events stay."""
        try:
            self._wait(self._client.disconnect(), 5.0)
        except (QMPError, EOFError, OSError, ValueError):
            # The far end may be dead, which is what the test is about: nothing is lost by it.
            # qemu.qmp raises here what ended its reader: a connection that closed, half a message
            # or none, a line that is too long (ValueError).
            return

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run a command and return its value.

        Raises :class:`ConnectionLostError` if QEMU is gone or does not answer within ``timeout``
        seconds (None: the recorder's patience), and :class:`HostfaultError` with QEMU's words if
        it refuses.
        """
        return self.ask(command, arguments, timeout)()

    def ask(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> Callable[[], Any]:
        """Begin to run a command; what is returned waits for its value, as :meth:`execute` does."""
        asked = self._begin(self._client.execute(command, arguments))
        patience = self._patience if timeout is None else timeout
        return partial(self._answer, command, asked, patience)

    def _answer(self, command: str, asked: Future[Any], timeout: float) -> Any:
        try:
            return self._result(asked, timeout)
        except ExecuteError as error:
            raise HostfaultError(f"{self._name}: {command}: {error}") from error
        except (ExecInterruptedError, TimeoutError, EOFError, OSError) as error:
            raise ConnectionLostError(
                f"{self._name}: no answer to {command} ({type(error).__name__})"
            ) from error
        except QMPError as error:  # StateError, when the connection is already gone
            raise ConnectionLostError(f"{self._name}: {command}: {error}") from error

    def monitor(self, line: str, timeout: float | None = None) -> str:
        """Run a command of the human monitor; returns its text."""
        return self.ask_monitor(line, timeout)()

    def ask_monitor(self, line: str, timeout: float | None = None) -> Callable[[], str]:
        """Begin to run it; what is returned waits for its text."""
        answer = self.ask("human-monitor-command", {"command-line": line}, timeout)
        return lambda: str(answer())

    def events(self) -> tuple[Event, ...]:
        """Every event so far; ``at`` is :func:`hostfault.plumbing.deadline.now`."""
        with self._changed:
            return tuple(self._events)

    def wait_for(self, name: str, deadline: Deadline, since: float = 0.0) -> Event:
        """The first event of that name not older than ``since``; raises DeadlineError."""
        with self._changed:
            while True:
                for event in self._events:
                    if event.name == name and event.at >= since:
                        return event
                deadline.saw(f"events {[event.name for event in self._events[-5:]]}")
                deadline.check()
                self._changed.wait(deadline.left())

    def wait_changed(self, seconds: float) -> None:
        """Sleep until an event comes, ``seconds`` at most."""
        with self._changed:
            self._changed.wait(seconds)

    def keep(self, direction: str, message: Message) -> None:
        """Write a message to the transcript, and keep it if it is an event."""
        data: dict[str, Any] = dict(message)
        self._transcript.write(json.dumps({"at": now(), "way": direction, "msg": data}) + "\n")
        self._transcript.flush()
        if "QMP" in data:
            said = data["QMP"]["version"]["qemu"]
            self.version = f"{said['major']}.{said['minor']}.{said['micro']}"
        if "event" not in data:
            return
        event = Event(str(data["event"]), now(), data.get("data", {}), host=self._host)
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    async def _open(self, path: Path) -> None:
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.settimeout(2.0)
            peer.connect(str(path))
            peer.setblocking(False)
        except OSError:
            peer.close()
            raise
        await self._client.connect(peer)

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        return self._result(self._begin(work), seconds)

    def _result(self, future: Future[T], seconds: float) -> T:
        deadline = Deadline(seconds, self._name)
        while True:
            try:
                return future.result(min(SLICE, deadline.left()))
            except TimeoutError:
                if not (future.done() or deadline.passed() or self._is_closed()):
                    continue
                future.cancel()
                raise

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)
