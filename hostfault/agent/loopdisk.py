"""A disk that is a file of the agent's, and so can fail: a loop device (loop(4))."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from pathlib import Path

CONTROL = "/dev/loop-control"
LOOP_SET_FD, LOOP_CLR_FD, LOOP_CTL_GET_FREE = 0x4C00, 0x4C01, 0x4C82  # linux/loop.h

_PAGE = os.sysconf("SC_PAGESIZE")
_HEADER = struct.Struct("=1024x3I")  # union swap_header of linux/swap.h: version, last page, bad
_MAGIC = b"SWAPSPACE2"  # at the end of the first page
_LIBC = ctypes.CDLL(None, use_errno=True)


class LoopDisk:
    """With an empty file system that ext4 mounts: busybox's, without extents and journal."""

    def __init__(self, file: Path, size: int) -> None:
        """Raises FileNotFoundError for a kernel without loop devices, and OSError."""
        self.size = size  # bytes
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
        finally:
            os.close(control)
        self.device = f"/dev/loop{number}"
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        self.make(file)
        self._device = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self._device, LOOP_SET_FD, self._file)

    def make(self, file: Path) -> None:
        """Write to the file what makes a disk of it. Raises OSError."""
        words = ["busybox", "mke2fs", "-F", "-b", "4096", "-m", "0", str(file)]
        made = subprocess.run(words, capture_output=True, text=True, timeout=60.0, check=False)
        if made.returncode != 0:
            raise OSError(f"mke2fs: {made.stdout}{made.stderr}")

    def cut(self) -> None:
        """Take everything away: reading beyond the end of the file is an I/O error."""
        os.ftruncate(self._file, 0)

    def grow(self) -> None:
        """Give the disk its size again; what was on it reads as zeroes."""
        os.ftruncate(self._file, self.size)

    def close(self) -> None:
        """Let go of the device; it is free once nothing has it mounted."""
        fcntl.ioctl(self._device, LOOP_CLR_FD)
        os.close(self._device)
        os.close(self._file)


class SwapDisk(LoopDisk):
    """A disk that the kernel swaps to."""

    def make(self, file: Path) -> None:
        """Write a swap space's header, as mkswap(8) does."""
        head = _HEADER.pack(1, self.size // _PAGE - 1, 0).ljust(_PAGE - len(_MAGIC), b"\0") + _MAGIC
        with file.open("r+b") as stream:
            stream.write(head)

    def use(self) -> None:
        """Let the kernel swap to it (swapon(2)). Raises OSError."""
        if _LIBC.swapon(os.fsencode(self.device), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"swapon of {self.device}: {os.strerror(number)}")
