"""The harness's end of a line into a machine that Bochs emulates (:mod:`hostfault.agent.line`)."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hostfault.agent.line import (
    AGENT,
    BEGINNING,
    CLOSE,
    DATA,
    LONGEST,
    OPEN,
    PORT,
    QMP,
    Frames,
    frame,
    frames_of,
)
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError
from hostfault.remote.agent import SLICE

HALF = 128  # how many numbers of channels there are for a boot, and for a fork of what it saved


class MachineLine:
    """Streams to the agent and to ports in the machine; get one from :func:`line`."""

    def __init__(self, incoming: int, outgoing: int, *, fork: bool) -> None:
        """``incoming`` is what Bochs prints, ``outgoing`` its serial port.

        A ``fork`` uses other numbers for its channels than the boot did, of which one may still be
        open in the machine.
        """
        self._incoming, self._outgoing = incoming, outgoing
        self._numbers = range(HALF, 2 * HALF) if fork else range(QMP + 1, HALF)
        self._last = self._numbers[0]
        self._lock = threading.Lock()  # of the streams
        # Apart from that, as the machine may take nothing before somebody has taken what it says.
        self._writing = threading.Lock()
        self._runs, self._listens = threading.Event(), threading.Event()
        self._trouble = ""
        self._far_ends: dict[int, socket.socket] = {}
        self.qmp_closed = threading.Event()  # by the guest's QEMU
        self.agent, far = socket.socketpair()
        self._begin(AGENT, far)
        self.qmp, far = socket.socketpair()
        self._begin(QMP, far)

    def wait_running(self, deadline: Deadline) -> None:
        """Wait for the machine to run. Raises :class:`ConnectionLostError` or DeadlineError."""
        self._wait(self._runs, deadline)

    def wait_listening(self, deadline: Deadline) -> None:
        """Wait for the machine's end of the line, after a boot. Raises as :meth:`wait_running`."""
        self._wait(self._listens, deadline)

    def open(self, port: int) -> LineStream:
        """A connection to a port of the machine's 127.0.0.1; one that is refused ends at once.

        Raises :class:`ConnectionLostError` if the line is gone or all channels are in use.
        """
        near, far = socket.socketpair()
        with self._lock:
            number = self._free_number()
            self._far_ends[number] = far
        self._send(frame(OPEN, number, PORT.pack(port)))
        self._begin(number, far)
        return LineStream(near)

    def carry(self) -> None:
        """Take in what Bochs prints until it ends: the work of a thread of its own."""
        try:
            self._carry()
        except (OSError, ValueError) as error:
            self._end(str(error))
        else:
            self._end("Bochs has closed it")

    def hang_up(self) -> None:
        """Close every stream."""
        self._end("it was closed")

    def _carry(self) -> None:
        frames, said = Frames(), b""
        while data := os.read(self._incoming, 1 << 16):
            if not self._runs.is_set():
                said += data
                _, mark, data = said.partition(BEGINNING)
                if not mark:
                    continue
                self._runs.set()
            for kind, channel, inside in frames.feed(data):
                self._take(kind, channel, inside)

    def _take(self, kind: int, channel: int, inside: bytes) -> None:
        far = self._far_ends.get(channel)
        if kind == OPEN:
            self._listens.set()
        elif (kind, channel) == (CLOSE, QMP):  # its stream stays: another QEMU may come
            self.qmp_closed.set()
        elif far is None:  # hung up here meanwhile
            return
        elif kind == DATA:
            with suppress(OSError):
                far.sendall(inside)
        elif kind == CLOSE:
            self._forget(channel)

    def _begin(self, number: int, far: socket.socket) -> None:
        self._far_ends[number] = far
        threading.Thread(target=self._pass_on, args=(number, far), daemon=True).start()

    def _pass_on(self, number: int, far: socket.socket) -> None:
        """What is written to a stream here, until it is closed; then it is closed there as well."""
        with suppress(OSError, ConnectionLostError):
            while data := far.recv(LONGEST):
                self._send(frames_of(number, data))
            if self._forget(number):
                self._send(frame(CLOSE, number))

    def _forget(self, number: int) -> bool:
        with self._lock:
            far = self._far_ends.pop(number, None)
        if far is None:
            return False
        with suppress(OSError):
            far.shutdown(socket.SHUT_RDWR)
        far.close()
        return True

    def _free_number(self) -> int:
        """The next one that is free; one that was free lately may still say something."""
        if self._trouble:
            raise ConnectionLostError(f"the line into the machine is gone: {self._trouble}")
        first, count = self._numbers[0], len(self._numbers)
        for step in range(1, count + 1):
            number = first + (self._last - first + step) % count
            if number not in self._far_ends:
                self._last = number
                return number
        raise ConnectionLostError(f"the line into the machine carries {count} streams already")

    def _send(self, data: bytes) -> None:
        with self._writing:  # a frame in one piece
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._outgoing, rest) :]

    def _wait(self, event: threading.Event, deadline: Deadline) -> None:
        while not event.wait(min(SLICE, deadline.left())):
            if self._trouble:
                raise ConnectionLostError(f"{deadline.waiting_for}: {self._trouble}")
            deadline.check()

    def _end(self, why: str) -> None:
        with self._lock:
            self._trouble = self._trouble or why
            numbers = list(self._far_ends)
        for number in numbers:
            self._forget(number)


class LineStream:
    """One stream of a line."""

    def __init__(self, near: socket.socket) -> None:
        self._near = near

    def sendall(self, data: bytes, /) -> None:
        """Write to it. Raises OSError if it has ended."""
        self._near.sendall(data)

    def recv(self, size: int, /) -> bytes:
        """What comes, at most so many bytes; empty once it has ended."""
        return self._near.recv(size)

    def shutdown_write(self) -> None:
        """Hang up: the line knows no half of a stream."""
        self.close()

    def close(self) -> None:
        """Hang up; whoever waits for something to come gets to know."""
        with suppress(OSError):
            self._near.shutdown(socket.SHUT_RDWR)
        self._near.close()


@contextmanager
def line(incoming: int, outgoing: int, *, fork: bool) -> Iterator[MachineLine]:
    """A line that is carried for the length of the block; see :class:`MachineLine`."""
    carried = MachineLine(incoming, outgoing, fork=fork)
    threading.Thread(target=carried.carry, daemon=True).start()
    try:
        yield carried
    finally:
        carried.hang_up()
        carried.agent.close()
        carried.qmp.close()
