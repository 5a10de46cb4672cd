"""The agent's line out of a machine that Bochs emulates, which has no virtio port and no network.

``python3 -m hostfault.agent.line --directory D --tty TTY --say PROGRAM``: what comes in on the
serial port and what goes out by PROGRAM (images/bochs/say.c) are frames, each of some channel.
Channel 0 is the agent's, which is started here; channel 1 is QMP of the guest's QEMU, which
connects to :data:`QMP_SOCKET`. The harness opens the others, each to a port of 127.0.0.1 where
somebody listens: SSH of the guest, for one. The machine may be saved and go on elsewhere between
two frames.

A frame is a header (:data:`HEADER`: kind, channel, length) and so many bytes: of the channel for
DATA, the port's number as two for OPEN, none for CLOSE. The first one says that the line listens:
it opens channel 0, without a port.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import struct
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

HEADER = struct.Struct("!BBH")
OPEN, DATA, CLOSE = 1, 2, 3  # kinds of frames
PORT = struct.Struct("!H")  # what is in a frame that opens
AGENT, QMP = 0, 1  # the channels that nobody opens
QMP_SOCKET = "/run/hostfault/guest-qmp"
BEGINNING = b"HOSTFAULT-LINE\n"  # comes before the first frame: Bochs prints words of its own
LONGEST = 16384  # bytes in a frame

Frame = tuple[int, int, bytes]  # kind, channel, what is in it


def frame(kind: int, channel: int, data: bytes = b"") -> bytes:
    """A frame as it goes over the line."""
    return HEADER.pack(kind, channel, len(data)) + data


def frames_of(channel: int, data: bytes) -> bytes:
    """The frames that carry bytes of a channel."""
    parts = range(0, len(data), LONGEST)
    return b"".join(frame(DATA, channel, data[at : at + LONGEST]) for at in parts)


class Frames:
    """Takes a stream apart into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete now. Raises ValueError for what is no frame."""
        self._rest += data
        while len(self._rest) >= HEADER.size:
            kind, channel, length = HEADER.unpack_from(self._rest)
            if kind not in (OPEN, DATA, CLOSE) or length > LONGEST:
                raise ValueError(f"this is no frame: {self._rest[:80]!r}")
            end = HEADER.size + length
            if len(self._rest) < end:
                return
            inside, self._rest = self._rest[HEADER.size : end], self._rest[end:]
            yield kind, channel, inside


def open_tty(path: str) -> int:
    """A serial port, raw, at 115200 baud. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    tty.setraw(fd)
    mode = termios.tcgetattr(fd)
    mode[4] = mode[5] = termios.B115200
    mode[2] |= termios.CLOCAL | termios.CREAD
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    return fd


class FarEnd:
    """Carries frames between the line and sockets of this machine."""

    def __init__(
        self, incoming: int, outgoing: int, agent: socket.socket, qmp: socket.socket
    ) -> None:
        """``incoming`` and ``outgoing`` are descriptors: the line's two ways; ``qmp`` listens."""
        self._incoming, self._outgoing = incoming, outgoing
        self._frames = Frames()
        self._channels = {AGENT: agent}
        self._selector = selectors.DefaultSelector()
        self._selector.register(incoming, selectors.EVENT_READ)
        self._selector.register(agent, selectors.EVENT_READ, AGENT)
        self._qmp = qmp
        self._selector.register(qmp, selectors.EVENT_READ)

    def serve(self) -> None:
        """Until the line or the agent ends. Raises ValueError for what is no frame."""
        while AGENT in self._channels:
            for key, _ in self._selector.select():
                if key.fd == self._incoming:
                    data = os.read(self._incoming, LONGEST)
                    if not data:
                        return
                    for each in self._frames.feed(data):
                        self._take(*each)
                elif key.fileobj is self._qmp:
                    self._accept_qmp()
                elif key.data in self._channels:
                    self._pass_on(key.data)

    def _take(self, kind: int, channel: int, inside: bytes) -> None:
        """Do what a frame from the harness says; of a channel that is gone it says nothing."""
        if kind == OPEN:
            self._open(channel, PORT.unpack(inside)[0])
        elif kind == CLOSE:
            self._close(channel)
        elif channel in self._channels:
            try:
                self._channels[channel].sendall(inside)
            except OSError:
                self._hang_up(channel)

    def _accept_qmp(self) -> None:
        """QEMU has come; a second one while the first is there is turned away."""
        peer, _ = self._qmp.accept()
        if QMP in self._channels:
            peer.close()
            return
        self._channels[QMP] = peer
        self._selector.register(peer, selectors.EVENT_READ, QMP)

    def _open(self, channel: int, port: int) -> None:
        peer = socket.socket()
        try:
            peer.connect(("127.0.0.1", port))
        except OSError:
            peer.close()
            self._send(frame(CLOSE, channel))
            return
        self._channels[channel] = peer
        self._selector.register(peer, selectors.EVENT_READ, channel)

    def _pass_on(self, channel: int) -> None:
        try:
            data = self._channels[channel].recv(LONGEST)
        except OSError:
            data = b""
        if data:
            self._send(frames_of(channel, data))
        else:
            self._hang_up(channel)

    def _hang_up(self, channel: int) -> None:
        self._close(channel)
        self._send(frame(CLOSE, channel))

    def _close(self, channel: int) -> None:
        peer = self._channels.pop(channel, None)
        if peer is not None:
            self._selector.unregister(peer)
            peer.close()

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._outgoing, rest) :]


def main() -> None:
    """Start the agent and serve it; see the module's text."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--tty", required=True)
    parser.add_argument("--say", required=True)
    options = parser.parse_args()
    tty_fd = open_tty(options.tty)
    ours, theirs = socket.socketpair()
    server = [sys.executable, "-P", "-m", "hostfault.agent", "--directory", str(options.directory)]
    server += ["--machine", str(theirs.fileno())]
    with (
        socket.socket(socket.AF_UNIX) as qmp,
        subprocess.Popen([options.say], stdin=subprocess.PIPE, bufsize=0) as say,
        subprocess.Popen(server, pass_fds=[theirs.fileno()]),
        contextlib.suppress(BrokenPipeError),  # nobody is left to tell; say has printed why
    ):
        theirs.close()
        qmp.bind(QMP_SOCKET)
        qmp.listen(1)
        assert say.stdin is not None
        with ours:
            os.write(say.stdin.fileno(), frame(OPEN, AGENT))
            FarEnd(tty_fd, say.stdin.fileno(), ours, qmp).serve()


if __name__ == "__main__":
    main()
