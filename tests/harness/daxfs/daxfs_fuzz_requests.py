"""FUSE requests against a model in memory: a guest that uses the share, and abuses it."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import daxfs_model as model
from daxfs_frontend import ADD_MEM_REG, GUEST, NEXT, REM_MEM_REG, REPLY_AT, REQUEST_AT, WRITE
from daxfs_guest import NO_HANDLE, ROOT, Guest, io
from daxfs_model import Inode
from daxfs_served import (
    MAX_GROWTH,
    MAX_HANDLES,
    MAX_NODES,
    FoundError,
    LeakError,
    Sandbox,
    check_end,
    served,
    timed,
)
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

WINDOW_GUEST, WINDOW_USER, WINDOW_LENGTH = 0xF800_0000, 0x7E00_0000_0000, 1 << 20
MAX_FILE = 1 << 20  # bytes
STALE = 1 << 40  # a node or a handle that never was

names = st.sampled_from([b"a", b"b", b"c", b"d", b"\xff" * 255])
bad_names = st.sampled_from([b"", b".", b"..", b"../secret", b"/", b"a/b", b"x" * 256])
picks = st.integers(0, 31)
MOSTLY = 28  # picks below choose among what makes sense
offsets = st.one_of(st.integers(0, 20000), st.sampled_from([0, 4095, 4096, 4097, 65536, 300_000]))
numbers = st.sampled_from(
    [0, 1, 2, 3, 5, 4095, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 63, (1 << 63) - 1, (1 << 64) - 1]
)
garbage = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda fields, tail: struct.pack(f"<{len(fields)}Q", *fields) + tail,
        st.lists(numbers, max_size=8),
        st.sampled_from([b"", b"a\0", b"a\0b\0", b"..\0", b"a", b"\0"]),
    ),
)


class Requests(RuleBasedStateMachine):
    """One guest, from mount to the end."""

    done = 0  # requests of all guests, for the report

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.sandbox = Sandbox()
        self._stack.callback(self.sandbox.close)
        self.guest: Guest = self._stack.enter_context(served(self.sandbox))
        self.guest.start()
        self.guest.init()
        self.descriptors = self.guest.open_descriptors()
        self.memory = self.guest.daemon.memory()  # type: ignore[attr-defined]
        self.reload()
        for name in (b"a", b"b"):
            self.create(0, name, exclusive=True, cut=False)
            self.write(len(self.handles) - 1, name * 5000 + b"end", 100)

    def reload(self) -> None:
        """What the guest knows right after INIT."""
        self.root = model.loaded(self.sandbox.shared)
        self.nodes: dict[int, Inode] = {ROOT: self.root}
        self.lookups: dict[int, int] = {}
        self.handles: dict[int, tuple[int, Inode]] = {}

    # --- picking ----------------------------------------------------------------------

    def node(self, pick: int) -> tuple[int, Inode]:
        """One that the guest knows."""
        known = sorted(self.nodes)
        number = known[pick % len(known)]
        return number, self.nodes[number]

    def of_kind(self, pick: int, kind: str) -> tuple[int, Inode]:
        """One of that kind, most of the time."""
        known = sorted(number for number, inode in self.nodes.items() if inode.kind == kind)
        if pick >= MOSTLY or not known:
            return self.node(pick)
        return known[pick % len(known)], self.nodes[known[pick % len(known)]]

    def folder(self, pick: int) -> tuple[int, Inode]:
        """A directory, most of the time."""
        return self.of_kind(pick, "directory")

    def handle(self, pick: int) -> tuple[int, int, Inode]:
        """Handle, node, inode; the node may be forgotten."""
        known = sorted(self.handles)
        handle = known[pick % len(known)]
        return handle, *self.handles[handle]

    def no_room_for(self, inode: Inode | None) -> bool:
        """Whether there are too many nodes for this one."""
        return inode not in self.nodes.values() and len(self.nodes) >= MAX_NODES

    # --- asking -----------------------------------------------------------------------

    def ask(self, wanted: int, attempt: Callable[[], object]) -> object:
        """Have a request answered; it must end in that error (0: in none)."""
        Requests.done += 1
        try:
            result = timed(self.guest, attempt)
        except OSError as error:
            found, result = error.errno or 0, None
        else:
            found = 0
        if found != wanted:
            told = [os.strerror(number) if number else "success" for number in (wanted, found)]
            raise FoundError(f"{told[0]} was due, {told[1]} came")
        return result

    def named(self, inode: Inode, number: object) -> None:
        """A reply has named a node."""
        assert isinstance(number, int)
        if self.nodes.get(number, inode) is not inode:
            raise FoundError(f"node {number} is another inode")
        if any(known is inode and other != number for other, known in self.nodes.items()):
            raise FoundError(f"a second node for an inode, {number}")
        self.nodes[number] = inode
        self.lookups[number] = self.lookups.get(number, 0) + 1

    # --- names ------------------------------------------------------------------------

    @rule(at=picks, name=names)
    def lookup(self, at: int, name: bytes) -> None:
        number, directory = self.folder(at)
        wanted, found = model.lookup(directory, name)
        if found is not None and self.no_room_for(found):
            wanted = errno.ENFILE
        node = self.ask(wanted, lambda: self.guest.lookup(name, number))
        if found is not None and not wanted:
            self.named(found, node)

    @rule(at=picks, name=bad_names, opcode=st.sampled_from([1, 10, 11]))
    def bad_name(self, at: int, name: bytes, opcode: int) -> None:
        number, _ = self.node(at)
        wanted = errno.ENAMETOOLONG if len(name) > 255 else errno.EINVAL
        self.ask(wanted, lambda: self.guest.fuse(opcode, number, name + b"\0"))

    @rule(at=picks, name=names, kind=st.sampled_from(["directory", "file", "fifo", "link"]))
    def make(self, at: int, name: bytes, kind: str) -> None:
        number, directory = self.folder(at)
        wanted = errno.ENFILE if len(self.nodes) >= MAX_NODES else model.can_add(directory, name)
        attempts: dict[str, Callable[[], int]] = {
            "directory": lambda: self.guest.mkdir(name, number),
            "file": lambda: self.guest.mknod(name, stat.S_IFREG | 0o600, number),
            "fifo": lambda: self.guest.mknod(name, stat.S_IFIFO | 0o600, number),
            "link": lambda: self.guest.symlink(name, b"../secret", number),
        }
        node = self.ask(wanted, attempts[kind])
        if not wanted:
            made = Inode(kind, bytearray(b"../secret" if kind == "link" else b""))
            directory.entries[name] = made
            self.named(made, node)

    @rule(at=picks, name=names, exclusive=st.booleans(), cut=st.booleans())
    def create(self, at: int, name: bytes, exclusive: bool, cut: bool) -> None:
        number, directory = self.folder(at)
        flags = os.O_RDWR | exclusive * os.O_EXCL | cut * os.O_TRUNC
        there = directory.entries.get(name)
        wanted = model.can_add(directory, name)
        if wanted == errno.EEXIST and not exclusive and there is not None:
            wanted = there.can_open
        if len(self.nodes) >= MAX_NODES or len(self.handles) >= MAX_HANDLES:
            wanted = errno.ENFILE
        reply = self.ask(wanted, lambda: self.guest.create(name, number, flags))
        if wanted:
            return
        assert isinstance(reply, tuple)
        if there is None:
            there = directory.entries[name] = Inode("file")
        elif cut:
            there.data.clear()
        self.named(there, reply[0])
        self.handles[reply[1]] = (reply[0], there)

    @rule(at=picks, name=names)
    def unlink(self, at: int, name: bytes) -> None:
        number, directory = self.folder(at)
        self.ask(model.unlink(directory, name), lambda: self.guest.unlink(name, number))

    @rule(at=picks, name=names)
    def rmdir(self, at: int, name: bytes) -> None:
        number, directory = self.folder(at)
        self.ask(model.rmdir(directory, name), lambda: self.guest.rmdir(name, number))

    @rule(old=picks, name=names, new=picks, new_name=names)
    def rename(self, old: int, name: bytes, new: int, new_name: bytes) -> None:
        (source, below), (target, to) = self.folder(old), self.folder(new)
        found = below.entries.get(name)
        if found is not None and found.kind == "directory" and below is not to:
            return  # a directory into another one: the kernel's rules for it are many
        wanted = model.rename(below, name, to, new_name)
        self.ask(wanted, lambda: self.guest.rename(name, new_name, source, target))

    @rule(what=picks, at=picks, name=names)
    def link(self, what: int, at: int, name: bytes) -> None:
        (node, inode), (number, directory) = self.node(what), self.folder(at)
        full = len(self.nodes) >= MAX_NODES
        wanted = errno.ENFILE if full else model.link(inode, directory, name)
        named = self.ask(wanted, lambda: self.guest.link(node, name, number))
        if not wanted:
            self.named(inode, named)

    @rule(at=picks, plus=st.booleans())
    def readdir(self, at: int, plus: bool) -> None:
        number, directory = self.folder(at)
        wanted = directory.can_hold
        if not wanted and len(self.handles) >= MAX_HANDLES:
            wanted = errno.ENFILE
        handle = self.ask(wanted, lambda: self.guest.opendir(number))
        if wanted:
            return
        assert isinstance(handle, int)
        entries = self.ask(
            errno.ENOENT if directory.removed else 0,
            lambda: self.guest.readdir(number, handle, plus=plus),
        )
        self.ask(0, lambda: self.guest.releasedir(number, handle))
        if directory.removed:
            return
        assert isinstance(entries, list)
        if {name for name, _, _ in entries} - {b".", b".."} != directory.entries.keys():
            raise FoundError(f"the directory holds {entries}, not {list(directory.entries)}")
        for name, _, node in entries:
            if node:
                self.named(directory.entries[name], node)

    # --- nodes ------------------------------------------------------------------------

    @rule(at=picks, count=st.integers(1, 3), batch=st.booleans())
    def forget(self, at: int, count: int, batch: bool) -> None:
        number, _ = self.node(at)
        if batch:
            count = 1
            self.guest.batch_forget(STALE, number, STALE)
        else:
            self.guest.forget(number, count)
        if number == ROOT:
            return
        self.lookups[number] -= count
        if self.lookups[number] <= 0:
            del self.nodes[number], self.lookups[number]
            self.ask(errno.ESTALE, lambda: self.guest.getattr(number))

    @rule(at=picks)
    def getattr(self, at: int) -> None:
        number, inode = self.node(at)
        found = self.ask(0, lambda: self.guest.getattr(number))
        if inode.kind in ("file", "link") and found.size != len(inode.data):  # type: ignore[attr-defined]
            raise FoundError(f"{found} of {len(inode.data)} bytes")
        if inode.kind != "directory" and found.links != inode.names:  # type: ignore[attr-defined]
            raise FoundError(f"{found} of {inode.names} names")

    @rule(at=picks, size=offsets)
    def truncate(self, at: int, size: int) -> None:
        number, inode = self.of_kind(at, "file")
        self.ask(inode.can_open, lambda: self.guest.truncate(number, size))
        if inode.kind == "file":
            model.truncate(inode, size)

    @rule(at=picks, size=offsets)
    def truncate_on_the_host(self, at: int, size: int) -> None:
        files = [name for name, inode in self.root.entries.items() if inode.kind == "file"]
        if files:
            name = sorted(files)[at % len(files)]
            os.truncate(os.fsencode(self.sandbox.shared) + b"/" + name, size)
            model.truncate(self.root.entries[name], size)

    # --- files ------------------------------------------------------------------------

    @rule(at=picks)
    def open(self, at: int) -> None:
        number, inode = self.of_kind(at, "file")
        wanted = inode.can_open
        if not wanted and len(self.handles) >= MAX_HANDLES:
            wanted = errno.ENFILE
        handle = self.ask(wanted, lambda: self.guest.open(number))
        if not wanted:
            assert isinstance(handle, int)
            self.handles[handle] = (number, inode)

    @precondition(lambda self: self.handles)
    @rule(at=picks)
    def release(self, at: int) -> None:
        handle, number, _ = self.handle(at)
        self.ask(0, lambda: self.guest.release(number, handle))
        del self.handles[handle]
        self.ask(errno.EBADF, lambda: self.guest.flush(number, handle))

    @precondition(lambda self: self.handles)
    @rule(at=picks, data=st.binary(min_size=1, max_size=5000), offset=offsets)
    def write(self, at: int, data: bytes, offset: int) -> None:
        handle, number, inode = self.handle(at)
        written = self.ask(0, lambda: self.guest.write(number, handle, data, offset))
        if written != len(data):
            raise FoundError(f"{written} of {len(data)} bytes written")
        model.write(inode, data, offset)

    @precondition(lambda self: self.handles)
    @rule(at=picks, offset=offsets, length=st.integers(0, 8000))
    def read(self, at: int, offset: int, length: int) -> None:
        handle, number, inode = self.handle(at)
        data = self.ask(0, lambda: self.guest.read(number, handle, offset, length))
        if data != inode.data[offset : offset + length]:
            raise FoundError(f"other bytes at {offset} of {len(inode.data)}")

    @precondition(lambda self: self.handles)
    @rule(at=picks, mode=st.sampled_from([0, 1, 3]), offset=offsets, length=offsets)
    def fallocate(self, at: int, mode: int, offset: int, length: int) -> None:
        handle, number, inode = self.handle(at)
        wanted = 0 if length else errno.EINVAL
        self.ask(wanted, lambda: self.guest.fallocate(number, handle, offset, length, mode))
        if not wanted:
            model.allocate(inode, mode, offset, length)

    # --- the window -------------------------------------------------------------------

    @rule(
        at=picks,
        foffset=st.integers(0, 8),
        moffset=st.integers(0, 8),
        pages=st.integers(1, 4),
        writable=st.booleans(),
        refused=st.booleans(),
    )
    def map(
        self, at: int, foffset: int, moffset: int, pages: int, writable: bool, refused: bool
    ) -> None:
        """SETUPMAPPING; what it must answer is tested elsewhere, here that no file changes."""
        number, inode = self.of_kind(at, "file")
        self.guest.answer = int(refused)
        where = (4096 * foffset, 4096 * moffset)
        self.attempt(lambda: self.guest.map(number, *where, length=4096 * pages, writable=writable))
        self.guest.answer = 0
        if inode.kind == "file":
            self.getattr(sorted(self.nodes).index(number))

    @rule(moffset=st.integers(0, 8), pages=st.integers(1, 4))
    def unmap(self, moffset: int, pages: int) -> None:
        self.attempt(lambda: self.guest.unmap(4096 * moffset, length=4096 * pages))

    def attempt(self, attempt: Callable[[], object]) -> None:
        """Have a request answered, whichever way."""
        Requests.done += 1
        with suppress(OSError):
            timed(self.guest, attempt)

    @precondition(lambda self: self.handles)
    @rule(
        at=picks,
        source=picks,
        start=st.integers(0, 20000),
        length=st.integers(1, 9000),
        writing=st.booleans(),
        cut=st.none() | offsets,
    )
    def hand_on(
        self, at: int, source: int, start: int, length: int, writing: bool, cut: int | None
    ) -> None:
        """WRITE from, or READ into, what the front-end has mapped of a file."""
        files = [name for name, inode in self.root.entries.items() if inode.kind == "file"]
        if not files:
            return
        name = sorted(files)[source % len(files)]
        mapped = self.root.entries[name]
        path = Path(os.fsdecode(os.fsencode(self.sandbox.shared) + b"/" + name))
        handle, number, inode = self.handle(at)
        region = struct.pack("<5Q", 0, WINDOW_GUEST, WINDOW_LENGTH, WINDOW_USER, 0)
        fd = os.open(path, os.O_RDWR)
        try:
            assert self.guest.number(ADD_MEM_REG, region, (fd,)) == 0
        finally:
            os.close(fd)
        if cut is not None:
            os.truncate(path, cut)
            model.truncate(mapped, cut)
        backed = -(-len(mapped.data) // 4096) * 4096
        if writing:
            # Read as a mapping has it: zero up to the end of the last page.
            data = bytes(mapped.data[start : start + length]).ljust(length, b"\0")
            wanted = 0 if start + length <= backed else errno.EFAULT
            self.ask(wanted, lambda: self.transfer(16, number, handle, start, length))
            if not wanted:
                model.write(inode, data, 0)
        else:
            data = bytes(inode.data[:length])
            wanted = 0 if not data or start + len(data) <= backed else errno.EFAULT
            self.ask(wanted, lambda: self.transfer(15, number, handle, start, length))
            end = min(start + len(data), len(mapped.data))
            # Beyond the end of the file, stores into its last page are lost, as in mmap(2).
            mapped.data[start:end] = data[: max(0, end - start)]
        assert self.guest.number(REM_MEM_REG, region) == 0

    def transfer(self, opcode: int, number: int, handle: int, start: int, length: int) -> None:
        """A READ or WRITE whose data are in the window; raises the OSError that it ends in."""
        guest, size = self.guest, 80 + length * (opcode == 16)
        guest.put_request(opcode, number, io(handle, 0, length), length=size)
        request = (GUEST + REQUEST_AT, 80, NEXT, 1)
        data = (WINDOW_GUEST + start, length)
        if opcode == 16:
            chain = [request, (*data, NEXT, 2), (GUEST + REPLY_AT, 24, WRITE, 0)]
        else:
            chain = [request, (GUEST + REPLY_AT, 16, NEXT | WRITE, 2), (*data, WRITE, 0)]
        before = guest.used(1)
        guest.describe(1, chain)
        guest.offer(1)
        guest.wait_used(1, before)
        error = struct.unpack_from("<i", guest.memory, REPLY_AT + 4)[0]
        if error:
            raise OSError(-error, os.strerror(-error))

    # --- abuse ------------------------------------------------------------------------

    @rule(opcode=st.integers(0, 60), at=picks, body=garbage, room=st.sampled_from([0, 8, 8192]))
    def anything(self, opcode: int, at: int, body: bytes, room: int) -> None:
        """A request that may be nonsense. What came of it is read from the disk."""
        if opcode in (2, 36, 42):
            self.guest.tell(opcode, ROOT, body)
        elif opcode != 26:
            self.attempt(lambda: self.guest.fuse(opcode, self.node(at)[0], body, room))
        self.start_anew()

    @rule()
    def start_anew(self) -> None:
        self.ask(0, self.guest.init)
        self.reload()
        if self.guest.open_descriptors() != self.descriptors:
            raise LeakError(f"{self.guest.open_descriptors()} descriptors, not {self.descriptors}")

    @rule(number=st.sampled_from([0, STALE, NO_HANDLE]), opcode=st.sampled_from([1, 3, 14, 15, 27]))
    def unknown(self, number: int, opcode: int) -> None:
        body = b"a\0" if opcode == 1 else io(STALE, 0, 10)
        wanted = errno.EBADF if opcode == 15 else errno.ESTALE
        self.ask(wanted, lambda: self.guest.fuse(opcode, number, body))

    def teardown(self) -> None:
        """Everything that must hold at the end."""
        with self._stack:
            if sys.exc_info()[0] is not None:
                return  # something was found, and that is to be told
            self.compare(self.root, model.loaded(self.sandbox.shared))
            self.start_anew()
            grown = self.guest.daemon.memory() - self.memory  # type: ignore[attr-defined]
            if grown > MAX_GROWTH:
                raise LeakError(f"{grown} bytes of memory more than at the start")
            check_end(self.guest, self.sandbox)

    def compare(self, wanted: Inode, found: Inode) -> None:
        """Raise unless the disk is as the model has it."""
        if (wanted.kind, wanted.data) != (found.kind, found.data):
            raise FoundError(f"{found.kind} of {len(found.data)} bytes is not as it must be")
        if wanted.entries.keys() != found.entries.keys():
            raise FoundError(f"{list(found.entries)} on the disk, not {list(wanted.entries)}")
        for name, inode in wanted.entries.items():
            self.compare(inode, found.entries[name])
