"""How fast the back-end answers: ``ci/bench-back-end``.

A front-end without a guest keeps 1 or 32 requests under way, for the back-end and, where its
program is given, for Debian's virtiofsd. That one maps nothing, so it has no figures for mappings.
Much of the time of a read of 4 KiB is this front-end's, which is Python, too.
The worst answer counts: more than 100 ms of it is a defect, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import shlex
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from daxfs_frontend import (
    ADD_MEM_REG,
    FEATURES,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GUEST,
    HALF,
    NEXT,
    PROTOCOL_FEATURES,
    RANGE,
    SET_BACKEND_REQ_FD,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    USER,
    WRITE,
    ring_at,
)
from daxfs_guest import Guest, io

import hostfault
from hostfault.plumbing import process
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import DeadlineError, HostfaultError

ENTRIES = 128  # of the ring: four descriptors for each of 32 requests
BUFFERS = 16 << 20  # bytes of memory for their data
BUFFERS_GUEST, BUFFERS_USER = 0x2_0000_0000, 0x7D00_0000_0000
SLOT = 512 * 1024  # bytes of it for each request
FILE = 32 << 20  # bytes
WORST = 0.1  # seconds that an answer may take
MEM_SLOTS = 1 << 15  # of GET_PROTOCOL_FEATURES: ADD_MEM_REG is known


@dataclass(frozen=True)
class Figure:
    """What came of one measurement."""

    name: str
    count: int  # answers
    seconds: float
    median: float  # seconds of an answer
    worst: float  # seconds

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / self.seconds


class Bench(Guest):
    """A guest with room for many requests at a time."""

    entries = ENTRIES

    def __init__(self, main: socket.socket, daemon: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(main, daemon, log)
        self.buffers_fd = os.memfd_create("buffers", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.buffers_fd, BUFFERS)
        fcntl.fcntl(self.buffers_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def set_up(self) -> None:
        """Mount; a back-end that knows less than ours is asked for no more than it knows."""
        features = self.number(GET_FEATURES) & FEATURES
        protocol = self.number(GET_PROTOCOL_FEATURES) & PROTOCOL_FEATURES
        self.send(SET_OWNER, ack=False)
        self.send(SET_FEATURES, struct.pack("<Q", features), ack=False)
        self.send(SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol), ack=False)
        if protocol & 1 << 5:
            fds = (self.backend_theirs.fileno(),)
            assert self.number(SET_BACKEND_REQ_FD, b"", fds) == 0
        self.buffers_fd = os.memfd_create("buffers", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.buffers_fd, BUFFERS)

        fcntl.fcntl(self.buffers_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        regions = [
            *((GUEST + start, HALF, USER + start, start, self.fd) for start in (0, HALF)),
            (BUFFERS_GUEST, BUFFERS, BUFFERS_USER, 0, self.buffers_fd),
        ]
        if protocol & MEM_SLOTS:
            for *region, fd in regions:
                assert self.number(ADD_MEM_REG, struct.pack("<5Q", 0, *region), (fd,)) == 0
        else:
            table = struct.pack("<II", len(regions), 0)
            table += b"".join(struct.pack("<4Q", *region[:4]) for region in regions)
            assert self.number(SET_MEM_TABLE, table, [region[4] for region in regions]) == 0
        for index in range(2):
            self.start_ring(index)
        self.init()

    def close(self) -> None:
        """Hang up and close everything."""
        super().close()
        os.close(self.buffers_fd)


class Load:
    """Requests of which so many are under way."""

    def __init__(self, guest: Bench, requests: Sequence[bytes], wanted: int, depth: int) -> None:
        """Every answer must have ``wanted`` bytes."""
        self._guest = guest
        self._wanted = wanted
        self._waiting = iter(requests)
        self._began_at = [0.0] * depth
        self._done = guest.used(1)
        self._available = guest.u16(ring_at(1) + 0x1002)
        self.under_way = 0
        self.took: list[float] = []  # seconds of each answer
        for slot in range(depth):
            self._post(slot)

    def _post(self, slot: int) -> None:
        """Make the next request available, if there is one."""
        request = next(self._waiting, None)
        if request is None:
            return
        guest, at = self._guest, 0x10000 + slot * 1024
        guest.memory[at : at + len(request)] = request
        chain = (
            (GUEST + at, 40, NEXT, 4 * slot + 1),
            (GUEST + at + 40, len(request) - 40, NEXT, 4 * slot + 2),
            (GUEST + at + 960, 16, NEXT | WRITE, 4 * slot + 3),
            (BUFFERS_GUEST + slot * SLOT, max(16, self._wanted), WRITE, 0),
        )
        for position, buffer in enumerate(chain):
            entry = ring_at(1) + 16 * (4 * slot + position)
            struct.pack_into("<QIHH", guest.memory, entry, *buffer)
        guest.u16(ring_at(1) + 0x1004 + 2 * (self._available % ENTRIES), 4 * slot)
        self._available = (self._available + 1) & 0xFFFF
        self._began_at[slot] = time.perf_counter()
        self.under_way += 1
        guest.u16(ring_at(1) + 0x1002, self._available)
        os.eventfd_write(guest.kicks[1], 1)

    def look(self) -> None:
        """Take in what is answered. Raises HostfaultError for an error."""
        guest = self._guest
        while self._done != guest.used(1):
            entry = ring_at(1) + 0x2004 + 8 * (self._done % ENTRIES)
            head, written = struct.unpack_from("<II", guest.memory, entry)
            slot = head // 4
            self._done = (self._done + 1) & 0xFFFF
            self.took.append(time.perf_counter() - self._began_at[slot])
            error = struct.unpack_from("<i", guest.memory, 0x10000 + slot * 1024 + 964)[0]
            if error:
                raise HostfaultError(f"a request failed: {os.strerror(-error)}")
            if written != 16 + self._wanted:
                raise HostfaultError(f"an answer of {written - 16} bytes, not {self._wanted}")
            self.under_way -= 1
            self._post(slot)


def under_load(
    guest: Bench, name: str, requests: Sequence[bytes], wanted: int, depth: int
) -> Figure:
    """Have requests answered, so many at a time."""
    deadline = Deadline(120.0, name)
    poll = select.poll()
    poll.register(guest.calls[1], select.POLLIN)
    poll.register(guest.backend, select.POLLIN)
    began = time.perf_counter()
    load = Load(guest, requests, wanted, depth)
    while load.under_way:
        for fd, _ in poll.poll(1000 * deadline.left()):
            if fd == guest.calls[1]:
                os.eventfd_read(fd)
            else:
                guest.serve_backend()
        deadline.check()
        load.look()
    seconds = time.perf_counter() - began
    return Figure(name, len(load.took), seconds, statistics.median(load.took), max(load.took))


def request(opcode: int, node: int, body: bytes) -> bytes:
    """A FUSE request."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 7, node, 0, 0, 1, 0, 0) + body


def reads(guest: Bench, length: int, depth: int, count: int) -> Figure:
    """Reads of a file that is in the page cache."""
    node = guest.lookup(b"file")
    handle = guest.open(node, os.O_RDONLY)
    asked = [
        request(15, node, io(handle, number * length % FILE, length)) for number in range(count)
    ]
    name = f"read {length // 1024} KiB, {depth} under way"
    return under_load(guest, name, asked, length, depth)


def mappings(guest: Bench, depth: int, count: int) -> Figure:
    """Pairs of SETUPMAPPING and REMOVEMAPPING; QEMU's part of them takes no time here."""
    node = guest.lookup(b"file")
    asked = []
    for number in range(count):
        where = number % 16 * RANGE
        asked.append(request(48, node, struct.pack("<5Q", (1 << 64) - 1, 0, RANGE, 2, where)))
        asked.append(request(49, 0, struct.pack("<IQQ", 1, where, RANGE)))
    found = under_load(guest, f"map, unmap, {depth} under way", asked, 0, depth)
    return Figure(found.name, found.count // 2, found.seconds, found.median, found.worst)


@contextmanager
def started(argv: Sequence[str], directory: Path) -> Iterator[Bench]:
    """A back-end whose command line has {fd} and {shared} in it, and a guest of it."""
    shared = directory / "shared"
    shared.mkdir(exist_ok=True)
    (shared / "file").write_bytes(os.urandom(1 << 20) * (FILE >> 20))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as main:
        path = directory / "s"
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        listener.set_inheritable(True)
        fd = listener.fileno()
        line = [word.format(fd=fd, shared=shared, directory=directory) for word in argv]
        env = os.environ | {"PYTHONPATH": str(Path(hostfault.__file__).parents[1])}
        log = directory / "stderr"
        with process.spawn(line, log=log, env=env, pass_fds=(fd,)) as daemon:
            main.connect(str(path))
            with closing(Bench(main, daemon, directory / "log")) as guest:
                guest.set_up()
                yield guest


OURS = (sys.executable, "-S", "-m", "hostfault.daxfs", "--fd", "{fd}", "--shared", "{shared}")
OURS_LOG = ("--log", "{directory}/log")
THEIRS = ("--fd", "{fd}", "--shared-dir", "{shared}", "--sandbox", "none", "--log-level", "error")


def measured(argv: Sequence[str], directory: Path, scale: float, *, maps: bool) -> list[Figure]:
    """All figures of one back-end."""
    figures = []
    with started(argv, directory) as guest:
        for length, count in ((4096, 20_000), (128 * 1024, 4_000)):
            for depth in (1, 32):
                figures.append(reads(guest, length, depth, round(count * scale)))
        if maps:
            figures += [mappings(guest, depth, round(3_000 * scale)) for depth in (1, 32)]
    return figures


def table(figures: Sequence[Figure], theirs: Sequence[Figure]) -> str:
    """Both as text; a dash where there is nothing to compare."""
    head = f"{'':28}{'ours: a second':>16}{'median':>10}{'worst':>10}"
    lines = [head + f"{'virtiofsd: a second':>22}{'median':>10}{'worst':>10}" * bool(theirs)]
    others = {figure.name: figure for figure in theirs}
    for figure in figures:
        line = f"{figure.name:28}" + _cells(figure, 16)
        if theirs:
            other = others.get(figure.name)
            line += _cells(other, 22) if other else f"{'-':>22}{'-':>10}{'-':>10}"
        lines.append(line)
    return "\n".join(lines)


def _cells(figure: Figure, width: int) -> str:
    rate, median, worst = figure.rate, figure.median * 1e6, figure.worst * 1e3
    return f"{rate:{width}.0f}{median:7.0f} us{worst:7.1f} ms"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ci/bench-back-end", description=main.__doc__)
    parser.add_argument(
        "--virtiofsd",
        metavar="COMMAND",
        help="Debian's (/usr/libexec/virtiofsd), or how it is started, to measure as well",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests")
    options = parser.parse_args(arguments)
    theirs: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="hostfault-bench-") as place:
        try:
            began = now()
            line = (*OURS, *OURS_LOG)
            ours = measured(line, Path(place), options.scale, maps=True)
            if options.virtiofsd:
                argv = (*shlex.split(options.virtiofsd), *THEIRS)
                theirs = measured(argv, Path(place), options.scale, maps=False)
        except (HostfaultError, DeadlineError, OSError, AssertionError) as error:
            words = process.tail(Path(place) / "stderr")
            print(f"ci/bench-back-end: {error!r}\n{words}", file=sys.stderr)
            return 2
        print(table(ours, theirs))
        print(f"measured in {now() - began:.0f} s")
    late = [figure for figure in ours if figure.worst > WORST]
    for figure in late:
        print(f"an answer took {figure.worst * 1e3:.0f} ms: {figure.name}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
