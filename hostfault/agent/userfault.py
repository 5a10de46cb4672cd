"""userfaultfd(2) of another process's memory: pages that are poisoned, or that a server must bring.

As a VMM does that is restored from a snapshot or migrated: it registers its guest's memory and
hands the descriptor to a server, which gets a message for each missing page and copies one there.
(Documentation/admin-guide/mm/userfaultfd.rst; ioctl_userfaultfd(2).)
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
from contextlib import suppress
from pathlib import Path

from hostfault.agent.children import in_child
from hostfault.agent.foreign_call import call_in

NR_CLOSE, NR_MADVISE, NR_USERFAULTFD, NR_PIDFD_GETFD = 3, 28, 323, 438  # x86-64
MADV_DONTNEED = 4
UFFD_API, UFFD_FEATURE_POISON = 0xAA, 1 << 14  # linux/userfaultfd.h, as all below
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
UFFDIO_COPY, UFFDIO_POISON = 0xC028AA03, 0xC020AA08
MODE_MISSING = 1
EVENT_PAGEFAULT, MESSAGE = 0x12, struct.Struct("=B7xQQ8x")  # struct uffd_msg: event, flags, address

_LIBC = ctypes.CDLL(None, use_errno=True)


class Userfault:
    """The descriptor of a range of another process's memory, registered for missing pages."""

    def __init__(self, pid: int, address: int, length: int, features: int = 0) -> None:
        """Raises OSError: EINVAL if the kernel lacks one of the features, or cannot watch it."""
        self.fd = _userfaultfd_of(pid)
        self.address, self.length = address, length
        try:
            fcntl.ioctl(self.fd, UFFDIO_API, struct.pack("=QQQ", UFFD_API, features, 0))
            wanted = struct.pack("=QQQQ", address, length, MODE_MISSING, 0)
            fcntl.ioctl(self.fd, UFFDIO_REGISTER, wanted)
        except OSError:
            self.close()
            raise

    def poison(self) -> None:
        """Let every access to the range, which has no page yet, meet poisoned memory."""
        asked = struct.pack("=QQQq", self.address, self.length, 0, 0)
        fcntl.ioctl(self.fd, UFFDIO_POISON, asked)

    def copy(self, page: int) -> None:
        """Put a range of zeroes, that lies at ``page``, where there is nothing yet."""
        asked = struct.pack("=QQQQq", self.address, page, self.length, 0, 0)
        with suppress(FileExistsError):  # two threads may have asked for it
            fcntl.ioctl(self.fd, UFFDIO_COPY, asked)

    def close(self) -> None:
        """Let go; the range is an ordinary one once nobody has the descriptor."""
        os.close(self.fd)


class PageServer:
    """A process of its own that holds a descriptor and should answer.

    ``manner``: it "answers" with a page of zeroes, it "hangs", stopped, and answers once it is
    continued, or it "ends" at the first fault.
    """

    def __init__(self, userfault: Userfault, manner: str) -> None:
        """The descriptor is the server's from now on. Raises OSError if it does not start."""
        self._pid = os.fork()
        if self._pid == 0:
            with suppress(BaseException):
                _serve(userfault, manner)
            os._exit(1)
        self._facts = Path(f"/proc/{self._pid}/fdinfo/{userfault.fd}")
        userfault.close()
        if manner == "hangs":
            os.waitid(os.P_PID, self._pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def unanswered(self) -> int | None:
        """How many page faults wait for it (fdinfo of a userfaultfd); None once it has ended."""
        try:
            lines = self._facts.read_text().splitlines()
        except OSError:
            return None
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found["total"])

    def go_on(self) -> None:
        """Continue it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def forget_pages(pid: int, address: int, length: int) -> None:
    """Take a range out of a process's page tables, poison included (madvise(2)). OSError."""
    call_in(pid, NR_MADVISE, address, length, MADV_DONTNEED)


def _serve(userfault: Userfault, manner: str) -> None:
    """The server's life, which has an end only if ``manner`` says so, or when the agent ends."""
    in_child()
    os.closerange(0, userfault.fd)
    os.closerange(userfault.fd + 1, os.sysconf("SC_OPEN_MAX"))
    memory = mmap.mmap(-1, userfault.length)
    page = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if manner == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        event, _, _ = MESSAGE.unpack(os.read(userfault.fd, MESSAGE.size))
        if manner == "ends":
            os._exit(0)
        if event == EVENT_PAGEFAULT:
            userfault.copy(page)


def _userfaultfd_of(pid: int) -> int:
    """A userfaultfd of another process's memory, ours alone. Raises OSError."""
    theirs = call_in(pid, NR_USERFAULTFD, os.O_CLOEXEC)
    try:
        process = os.pidfd_open(pid)
        try:
            ours = int(_LIBC.syscall(NR_PIDFD_GETFD, process, theirs, 0))
        finally:
            os.close(process)
        if ours < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    finally:
        call_in(pid, NR_CLOSE, theirs)
    return ours


def is_lacking(error: OSError) -> bool:
    """Whether a kernel that is too old, or was built without, answers so."""
    return error.errno in (errno.EINVAL, errno.ENOSYS)
