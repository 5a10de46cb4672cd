"""The harness's hand on the host: processes, files and counts, over lines of JSON.

``--stdio FD``: serve one harness on an inherited socket, then end every child and remove the
directory; a local host uses this, so that nothing outlives the harness.
``--port NAME``: serve on a virtio-serial port; an emulated host uses this. The machine may be saved
and go on elsewhere between two requests, and children, port and agent do not notice.
``--machine FD``: the same on an inherited socket, where :mod:`hostfault.agent.line` stands between.

A request is ``{"id": N, "op": NAME, ...}``, its answer ``{"id": N, "ok": VALUE}`` or
``{"id": N, "error": TEXT}``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hostfault.agent.cgroup import Limit
from hostfault.agent.child_memory import ChildMemory
from hostfault.agent.children import PR_SET_PDEATHSIG, dismiss, end
from hostfault.agent.counters import ANYWHERE, Counters, NoCounts, begin
from hostfault.agent.datafiles import DataFiles
from hostfault.agent.filesystems import (
    OwnFileSystems,
    find_pages,
    leave_mount_namespace,
    poison,
    punch_hole,
    soft_offline,
    type_of,
    write_at,
)
from hostfault.agent.modules import build_id_of
from hostfault.agent.ports import open_port
from hostfault.agent.privilege import other_users
from hostfault.agent.procstat import mappings_of, threads_of, vcpu_threads
from hostfault.agent.swap import swap_out
from hostfault.agent.wire import ADDRESS, PORT, Echo, make_tap

SWAP = 4 << 20  # bytes of the disk that is swapped to
LIMIT = 1 << 20  # bytes of a file that one request may ask for


class AgentServer(ChildMemory):
    """The operations. Every public method is one; its arguments are the request's fields.

    A guest can write to the directory that it shares. There, only ``make_file`` and what acts on
    a file so made (``truncate``, ``stat``, ``byte``) are safe; ``read`` and ``write`` follow links.
    """

    def __init__(self, directory: Path, *, expendable: bool = False) -> None:
        """``expendable``: the machine is the harness's own, and nobody needs it afterwards."""
        super().__init__(directory, expendable=expendable)
        self._files = DataFiles(directory)
        self._file_systems = OwnFileSystems()
        self._counters: Counters = NoCounts("nobody has asked to count")
        self._kernel_log: int | None = None
        self._limit: Limit | None = None
        self._echo: Echo | None = None

    def hello(self) -> dict[str, Any]:
        """Who is there, and which kernel runs."""
        return {
            "release": os.uname().release,
            "kvm_build_id": build_id_of("kvm"),
            "pid": os.getpid(),
            "dir": str(self._directory),
        }

    def other_users(self, number: int) -> list[int]:
        """Users that nobody is, for what a guest may break into; none: we may not be them."""
        return other_users(number)

    def give(self, path: str, user: int) -> None:
        """Give a directory to a user and the group of the same number."""
        os.chown(self._path(path), user, user, follow_symlinks=False)

    def mount(self, path: str, size: int, huge: bool = False) -> bool:
        """Mount a tmpfs of ``size`` bytes of the agent's own; False: only root may.

        ``huge``: it takes transparent huge pages.
        """
        return self._file_systems.mount(self._path(path), size, huge=huge)

    def mount_huge_pages(self, path: str, pages: int) -> None:
        """Have a pool of huge pages and mount a hugetlbfs; where :meth:`may_hurt` only."""
        self._check_may_hurt()
        self._file_systems.mount_huge_pages(self._path(path), pages)

    def mount_disk(self, path: str, size: int) -> bool:
        """Mount ext4 on a loop device of our own; where :meth:`may_hurt` only."""
        self._check_may_hurt()
        return self._file_systems.mount_disk(self._path(path), size)

    def break_disk(self, path: str) -> None:
        """Let all reading of that disk fail with EIO."""
        self._file_systems.disk(self._path(path)).cut()

    def mend_disk(self, path: str) -> None:
        """Undo :meth:`break_disk`; what was on it reads as zeroes."""
        self._file_systems.disk(self._path(path)).grow()

    def evict(self, path: str, at: int, length: int) -> None:
        """Write a range of a file that was made to its disk, and forget it (posix_fadvise(2))."""
        fd = self._files.fd(path)
        os.fsync(fd)
        os.posix_fadvise(fd, at, length, os.POSIX_FADV_DONTNEED)

    def limit(self, name: str, controller: str) -> bool:
        """Put a child into a cgroup without any room; False for a kernel without that controller.

        Where :meth:`may_hurt` only: the cgroups are the machine's.
        """
        self._check_may_hurt()
        try:
            self._limit = Limit(self._cgroups(), controller)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
                return False
            raise
        self._limit.hold(self._children[name].pid)
        return True

    def lift_limit(self) -> None:
        """Undo :meth:`limit`, but for the cgroup."""
        if self._limit is not None:
            self._limit.lift()

    def swap_out(self, path: str, at: int, fill: int, length: int) -> bool:
        """Fill a range of a file that was made, on a tmpfs, and send it to a disk ``swap``.

        False for a kernel without loop devices. Where :meth:`may_hurt` only.
        """
        self._check_may_hurt()
        if not self._file_systems.swap_to(self._path("swap"), SWAP):
            return False
        swap_out(self._cgroups(), self._files.fd(path), at, bytes([fill]) * length)
        return True

    def _cgroups(self) -> Path:
        """Where the machine's cgroups are mounted, by now."""
        place = self._path("cgroup")
        place.mkdir(exist_ok=True)
        self._file_systems.mount_cgroups(place)
        return place

    def drain_pool(self) -> int:
        """Take the free huge pages from the pool; returns how many are still free."""
        self._check_may_hurt()
        return self._file_systems.pool.drain()

    def refill_pool(self) -> None:
        """Undo :meth:`drain_pool`."""
        self._file_systems.pool.refill()

    def may_fill(self, path: str) -> bool:
        """Whether :meth:`fill` will do: the agent has mounted what the file lies on."""
        return self._file_systems.has(self._path(path))

    def fill(self, path: str) -> None:
        """Fill the file system of a file; it must be one of the agent's own."""
        self._file_systems.fill(self._path(path))

    def make_room(self, path: str) -> None:
        """Undo :meth:`fill`."""
        self._file_systems.make_room(self._path(path))

    def punch(self, path: str, at: int, length: int) -> None:
        """Take a range out of a file that was made; it reads as zeroes."""
        punch_hole(self._files.fd(path), at, length)

    def poison(self, path: str, at: int) -> None:
        """Mark a page of a file that was made as broken hardware; where :meth:`may_hurt` only."""
        self._check_may_hurt()
        poison(self._files.fd(path), at)

    def soft_offline(self, path: str, at: int) -> list[int]:
        """Have a page of a file that was made moved; where :meth:`may_hurt` only.

        Returns the machine's frame of the page before and after.
        """
        self._check_may_hurt()
        return list(soft_offline(self._files.fd(path), at))

    def change_name(self, path: str, how: str) -> int:
        """Rename, unlink or replace a file that was made. Returns the inode of its name now."""
        return self._files.change_name(path, how)

    def file_system(self, path: str) -> str:
        """The type of the file system that a file lies on which was made or adopted."""
        return type_of(self._files.fd(path))

    def read(self, path: str, offset: int = 0, limit: int = 65536) -> dict[str, Any]:
        """Part of a file as text, with its size; a negative offset counts from the end."""
        with self._path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            stream.seek(start)
            data = stream.read(min(limit, LIMIT))
        return {"text": data.decode("latin-1"), "next": start + len(data), "size": size}

    def make_file(self, path: str, fill: list[int | None], page_size: int) -> None:
        """Make a file anew in which page N is full of the byte ``fill[N]``; None is a hole."""
        os.ftruncate(self._files.make(path), len(fill) * page_size)
        self.write_pages(path, 0, fill, page_size)

    def adopt(self, path: str) -> None:
        """Act from now on, too, on a file that a child has made, where no guest can write."""
        self._files.adopt(path)

    def adopt_descriptor(self, name: str, link: str, path: str) -> None:
        """Act from now on, too, on a file without a name that a child has open."""
        self._files.adopt_descriptor(self._children[name].pid, link, path)

    def find_pages(self, path: str, text: str, number: int) -> int:
        """The offset of the first ``number`` pages in a row of a file that hold this text."""
        return find_pages(self._files.fd(path), text.encode(), number)

    def write_pages(self, path: str, at: int, fill: list[int | None], page_size: int) -> None:
        """Fill pages of a file from offset ``at`` on, as :meth:`make_file` does."""
        fd = self._files.fd(path)
        for number, byte in enumerate(fill):
            if byte is None:
                punch_hole(fd, at + number * page_size, page_size)
            else:
                write_at(fd, at + number * page_size, bytes([byte]) * page_size)

    def allocate(self, path: str, at: int, length: int) -> None:
        """Give a range of a file its pages."""
        os.posix_fallocate(self._files.fd(path), at, length)

    def write(self, path: str, text: str) -> None:
        """Write a file; what it held is gone."""
        self._path(path).write_text(text)

    def make_directory(self, path: str) -> None:
        """Make a directory, and those above it."""
        self._path(path).mkdir(parents=True, exist_ok=True)

    def truncate(self, path: str, size: int) -> int:
        """Cut a file that was made; returns the size that it then has."""
        os.ftruncate(self._files.fd(path), size)
        return os.fstat(self._files.fd(path)).st_size

    def stat(self, path: str) -> dict[str, int]:
        """Device, inode and size of a file that was made."""
        found = os.fstat(self._files.fd(path))
        return {"dev": found.st_dev, "ino": found.st_ino, "size": found.st_size}

    def mappings(self, name: str, path: str) -> list[list[int]]:
        """Where a child has a file mapped that was made: [address, length, offset] of each."""
        found = os.fstat(self._files.fd(path))
        return mappings_of(self._children[name].pid, found, str(self._path(path)))

    def byte(self, path: str, offset: int) -> int | None:
        """One byte of a file that was made; None beyond its end, or in a page that is poisoned."""
        try:
            data = os.pread(self._files.fd(path), 1, offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None
        return data[0] if data else None

    def trace(self, anew: bool = True) -> list[str]:
        """Begin to count tracepoints, and to keep the kernel's log. Returns what is counted.

        With ``anew`` false, counts that have begun go on: that takes no time.
        """
        self._open_kernel_log()
        if anew or not self._counters.counted():
            self._counters.stop()
            self._counters = begin()
        return self._counters.counted()

    def reads_kernel_log(self) -> bool:
        """Whether the kernel lets us read its log (dmesg_restrict), since :meth:`trace`."""
        return self._kernel_log is not None

    def counted_by(self) -> list[str]:
        """How tracepoints are counted ("tracefs", "perf", or "" for not), and if not, why."""
        counters = self._counters
        return [counters.how, counters.why if isinstance(counters, NoCounts) else ""]

    def count_touches(self, address: int, length: int) -> bool:
        """Count, too, the page faults of the kernel's in that range of user memory; False: none."""
        return self._counters.count_touches(address, length)

    def make_wire(self) -> bool:
        """Make a tap and answer on it, where :meth:`may_hurt`; False: no tun, or no vhost_net."""
        self._check_may_hurt()
        if not make_tap():
            return False
        self._echo = Echo(ADDRESS, PORT)
        return True

    def histogram(self, event: str) -> list[Any]:
        """Counts of one tracepoint since :meth:`trace`: [keys, count] for each set of keys."""
        return [list(entry) for entry in self._counters.entries(event)]

    def sample(
        self,
        name: str,
        tails: list[str],
        watched: int | None = None,
        address: int | None = None,
        place: tuple[int, int] = ANYWHERE,
    ) -> dict[str, Any]:
        """Counts, CPU seconds of a child's vCPU threads, its exit code, and the ends of logs.

        The counts of the frame ``watched`` are always among them; ``place`` are the first and the
        last instruction that may be the access. ``backed`` is whether the
        child's own memory at ``address`` can be read; ``unanswered`` are the page faults that wait
        for a server of :meth:`serve_mapping`; ``gone`` are other children that have ended;
        ``worker_seconds`` is the CPU time of vhost workers.
        """
        threads = vcpu_threads(self._children[name].pid)
        return {
            **self._counters.counts(threads.keys(), watched, (place[0], place[1])),
            "vcpu_seconds": sum(threads.values()),
            "worker_seconds": sum(threads_of(self._children[name].pid, "vhost-").values()),
            "ended": self.ended(name),
            "backed": None if address is None else self._is_backed(name, address),
            "unanswered": self._unanswered(),
            "gone": {each: child.poll() for each, child in self._others(name)},
            "tails": [self.read(path, offset=-6000)["text"] for path in tails],
        }

    def _others(self, name: str) -> list[tuple[str, subprocess.Popen[bytes]]]:
        """Children that were spawned, have ended, and are not ``name``."""
        return [
            (each, child)
            for each, child in self._children.items()
            if each != name and child.stdin is None and child.poll() is not None
        ]

    def _is_backed(self, name: str, address: int) -> bool | None:
        """Whether the kernel finds a page there (proc(5), /proc/PID/mem); None: not to be asked.

        Whoever reads there has the page made. Of a cgroup at its limit that is the OOM killer's
        call, or, where the reader's own cgroup counts, a page that the child could not have had.
        """
        if self._limit is not None:
            return None
        try:
            memory_of = Path(f"/proc/{self._children[name].pid}/mem")
            with memory_of.open("rb", buffering=0) as memory:
                os.pread(memory.fileno(), 1, address)
        except OSError as error:
            return False if error.errno in (errno.EIO, errno.EFAULT) else None
        return True

    def stacks(self, name: str) -> list[str]:
        """Where each vCPU thread is in the host's kernel (proc(5), /proc/TID/stack); root only."""
        stacks = []
        for thread in vcpu_threads(self._children[name].pid):
            with contextlib.suppress(OSError):
                stacks.append(Path(f"/proc/{thread}/stack").read_text(errors="replace"))
        return stacks

    def tails(self, paths: list[str], limit: int) -> list[str | None]:
        """The ends of several files, of ``limit`` bytes each; None for one that is not there."""
        texts: list[str | None] = []
        for path in paths:
            try:
                texts.append(self.read(path, offset=-limit)["text"])
            except OSError:
                texts.append(None)
        return texts

    def kernel_log(self) -> str:
        """What the kernel has logged since :meth:`trace` (Documentation/ABI/testing/dev-kmsg)."""
        lines: list[str] = []
        while self._kernel_log is not None and len(lines) < 2000:
            try:
                record = os.read(self._kernel_log, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten before we read them
                continue
            lines.append(record.partition(";")[2].splitlines()[0])
        return "\n".join(lines)

    def _remove_directory(self) -> None:
        """Not with shutil, which is recursive: the guest decides how deep the share is."""
        subprocess.run(["rm", "-rf", "--", self._directory], check=False, timeout=60.0)

    def close(self) -> None:
        """End every child, stop tracing, remove the directory; each even if another fails."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._remove_directory)
            last_first.callback(self._file_systems.close)
            last_first.callback(self._files.close)
            last_first.callback(self._cap.close)
            last_first.callback(lambda: self._counters.stop())
            last_first.callback(dismiss, self._guards)
            last_first.callback(self._end_servers)
            if self._echo is not None:
                last_first.callback(self._echo.close)
            for child in self._children.values():
                last_first.callback(end, child)

    def _open_kernel_log(self) -> None:
        if self._kernel_log is None:
            with contextlib.suppress(OSError):  # not readable: the log stays empty
                self._kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        if self._kernel_log is not None:
            os.lseek(self._kernel_log, 0, os.SEEK_END)


OPERATIONS = frozenset(name for name in dir(AgentServer) if not name.startswith("_")) - {"close"}


def answer(agent: AgentServer, line: bytes) -> dict[str, Any]:
    """Carry out one request; whatever goes wrong is told to the harness."""
    number = None
    try:
        request = json.loads(line)
        number, op = request.pop("id"), request.pop("op")
        if op not in OPERATIONS:
            return {"id": number, "error": f"no such operation: {op}"}
        method: Callable[..., Any] = getattr(agent, op)
        return {"id": number, "ok": method(**request)}
    except Exception as error:  # the harness decides what it means
        return {"id": number, "error": f"{type(error).__name__}: {error}"}


def serve(agent: AgentServer, incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Answer requests until the harness goes away."""
    with contextlib.suppress(OSError):
        for line in incoming:
            outgoing.write(json.dumps(answer(agent, line)).encode() + b"\n")
            outgoing.flush()


def main() -> None:
    """Run the agent; see the module's text for the two ways."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--stdio", type=int, metavar="FD")
    way.add_argument("--port", metavar="NAME")
    way.add_argument("--machine", type=int, metavar="FD")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which hangs up
    if options.stdio is not None:
        leave_mount_namespace()
        _serve_one(options.directory, socket.socket(fileno=options.stdio))
        return
    # A machine that has such a port, or such a line, was made for one case.
    agent = AgentServer(options.directory, expendable=True)
    with _way_out(options.machine, options.port) as (incoming, outgoing):
        serve(agent, incoming, outgoing)


@contextlib.contextmanager
def _way_out(fd: int | None, port: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The stream to the harness, to read and to write: an inherited socket, or a port."""
    if fd is None:
        with open_port(port) as both:
            yield both
        return
    with (
        socket.socket(fileno=fd) as connection,
        connection.makefile("rb") as incoming,
        connection.makefile("wb") as outgoing,
    ):
        yield incoming, outgoing


def _serve_one(directory: Path, connection: socket.socket) -> None:
    """Serve one harness, then leave nothing behind.

    SIGTERM, which also comes when the harness dies, hangs up instead of raising: so it can come
    at any time, also while everything is being closed.
    """

    def hang_up(*_: object) -> None:
        with contextlib.suppress(OSError):  # closed, or hung up by the harness
            connection.shutdown(socket.SHUT_RDWR)

    signal.signal(signal.SIGTERM, hang_up)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    agent = AgentServer(directory)
    try:
        with connection, connection.makefile("rb") as asks, connection.makefile("wb") as answers:
            serve(agent, asks, answers)
    finally:
        agent.close()
