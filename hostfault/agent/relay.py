"""Carry bytes between a connection over SSH and a Unix socket of this machine.

``python3 -m hostfault.agent.relay PATH``: standard input and output are the connection. QEMU makes
its sockets some time after it was started, so for a while the socket is awaited.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading
import time

PATIENCE = 30.0  # seconds for the socket to be there
PAUSE = 50  # milliseconds between two attempts


def main(path: str) -> None:
    """Until one of the two hangs up. Raises OSError if nobody listens at the path."""
    with socket.socket(socket.AF_UNIX) as peer:
        _connect(peer, path)
        threading.Thread(target=_to_output, args=(peer,), daemon=True).start()
        while data := os.read(0, 1 << 16):
            peer.sendall(data)


def _connect(peer: socket.socket, path: str) -> None:
    until = time.monotonic() + PATIENCE
    input_gone = select.poll()
    input_gone.register(0, 0)  # a hang-up is always told
    while True:
        try:
            return peer.connect(path)
        except OSError:
            if input_gone.poll(PAUSE) or time.monotonic() > until:
                raise


def _to_output(peer: socket.socket) -> None:
    """Ends the process: its other thread may wait for input that never comes."""
    with contextlib.suppress(OSError):
        while data := peer.recv(1 << 16):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1, rest) :]
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
