"""A network of the agent's own, between this machine and a guest: a tap, and who answers on it.

The tap is this machine's end (Documentation/networking/tuntap.rst); QEMU takes the other one, by a
vhost worker of the kernel's. What comes to the port is sent back as it is (RFC 862).
"""

from __future__ import annotations

import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

DEVICE = "hostfault0"
ADDRESS, PREFIX, PORT = "192.0.2.1", 24, 7  # RFC 5737: nobody's; RFC 862
NEEDED = (Path("/dev/net/tun"), Path("/dev/vhost-net"))
LONGEST = 65536  # bytes of a datagram
_PATIENCE = 20.0  # seconds for ip(8), and for the thread to end


class Echo:
    """Answers datagrams until it is closed."""

    def __init__(self, address: str, port: int) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self._open = True
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._open = False
        with suppress(OSError):  # it fails, as there is no peer, and wakes the thread all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE)  # a daemon: it would not keep the agent from ending
        self._socket.close()

    def _answer(self) -> None:
        while self._open:
            with suppress(OSError):  # a sender that is gone is no reason to stop
                data, sender = self._socket.recvfrom(LONGEST)
                if self._open:
                    self._socket.sendto(data, sender)


def make_tap() -> bool:
    """Make the tap, give it its address; False for a kernel without tun or vhost_net.

    Raises OSError with ip(8)'s words.
    """
    if not all(device.exists() for device in NEEDED):
        return False
    _ip("tuntap", "add", "dev", DEVICE, "mode", "tap", "vnet_hdr")
    _ip("address", "add", f"{ADDRESS}/{PREFIX}", "dev", DEVICE)
    _ip("link", "set", "dev", DEVICE, "up")
    return True


def _ip(*words: str) -> None:
    done = subprocess.run(
        ["ip", *words], capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stdout}{done.stderr}")
