"""Virtio-serial ports: a stream of bytes between a machine and its QEMU, with no network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PORTS = Path("/sys/class/virtio-ports")


@contextmanager
def open_port(name: str, ports: Path = PORTS) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The port that QEMU calls ``name`` (property "name" of virtserialport), to read and to write.

    Linux shows that name below /sys/class/virtio-ports (drivers/char/virtio_console.c), and lets
    a port be opened once. Raises FileNotFoundError that lists the ports there are.
    """
    files = [port / "name" for port in ports.glob("*/")]
    found = {file.read_text().strip(): file.parent.name for file in files if file.exists()}
    if name not in found:
        raise FileNotFoundError(f"no virtio-serial port {name!r}, only {sorted(found)}")
    fd = os.open(f"/dev/{found[name]}", os.O_RDWR | os.O_CLOEXEC)
    try:
        with open(fd, "rb", closefd=False) as incoming, open(fd, "wb", closefd=False) as outgoing:
            yield incoming, outgoing
    finally:
        os.close(fd)
