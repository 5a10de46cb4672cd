"""The inodes and the open files that the guest knows of.

A node is an O_PATH descriptor: it follows its inode through renames, can't be confused with
another one, and opens nothing. Files are opened anew through ``/proc/self/fd``, and only
regular files and directories are: a device or a FIFO in the shared directory is never touched.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostfault.daxfs.fuse import ROOT_ID

MAX_HANDLES = 4096
MAX_NODES = 32768
SPARE_FDS = 128  # for sockets, memory, rings, and what is open within one operation
OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC  # what a guest may choose; offsets come with each request


@dataclass
class Node:
    """An inode that the guest may name."""

    number: int
    fd: int  # O_PATH
    key: tuple[int, int]  # st_dev, st_ino
    lookups: int  # how many of our replies named it and were not forgotten

    def stat(self) -> os.stat_result:
        """Its attributes now."""
        return os.fstat(self.fd)

    @property
    def path(self) -> str:
        """A name that leads to this very inode and nowhere else."""
        return f"/proc/self/fd/{self.fd}"

    def open(self, flags: int) -> int:
        """Open a regular file. Raises OSError."""
        mode = self.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(errno.EISDIR)
        if not stat.S_ISREG(mode):
            raise error(errno.EOPNOTSUPP)
        return os.open(self.path, flags & OPEN_FLAGS | os.O_CLOEXEC)

    def chmod(self, mode: int) -> None:
        """Set the permissions; Linux refuses that for symbolic links. Raises OSError."""
        Path(self.path).chmod(mode & 0o7777)

    def open_directory(self) -> int:
        """Open a directory for reading. Raises OSError."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)


@dataclass(frozen=True)
class Handle:
    """An open file or directory."""

    fd: int
    node: int
    directory: bool


class Nodes:
    """All nodes, by number and by inode."""

    def __init__(self, shared: Path, limit: int = MAX_NODES) -> None:
        self._limit = limit
        self._by_number: dict[int, Node] = {}
        self._by_key: dict[tuple[int, int], Node] = {}
        self._last = 0
        fd = os.open(shared, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = self.adopt(fd)
        assert self.root.number == ROOT_ID

    def __len__(self) -> int:
        return len(self._by_number)

    def knows(self, number: int) -> bool:
        """Whether there is a node of that number; sooner than to be told by an exception."""
        return number in self._by_number

    def get(self, number: int) -> Node:
        """A node by its number. Raises OSError (ESTALE)."""
        node = self._by_number.get(number)
        if node is None:
            raise error(errno.ESTALE)
        return node

    def adopt(self, fd: int) -> Node:
        """The node of an O_PATH descriptor, which is now ours, with one lookup more.

        Raises OSError (ENFILE when there are too many).
        """
        st = os.fstat(fd)
        key = (st.st_dev, st.st_ino)
        node = self._by_key.get(key)
        if node is not None:
            os.close(fd)
        else:
            with closed_on_error(fd):
                self.check_room()
            self._last += 1
            node = Node(self._last, fd, key, 0)
            self._by_number[node.number] = self._by_key[key] = node
        node.lookups += 1
        return node

    def check_room(self) -> None:
        """Raise OSError (ENFILE) if there is no room for one more."""
        if len(self._by_number) >= self._limit:
            raise error(errno.ENFILE)

    @contextmanager
    def kept(self, node: Node) -> Iterator[None]:
        """Take back one lookup if the block raises: the guest will not hear of it."""
        try:
            yield
        except BaseException:
            self.forget(node.number, 1)
            raise

    def forget(self, number: int, lookups: int) -> None:
        """Take back lookups; the last one ends the node. Raises OSError (ESTALE)."""
        node = self.get(number)
        if node is self.root:
            return
        node.lookups = max(0, node.lookups - lookups)
        if node.lookups == 0:
            self._drop(node)

    def clear(self) -> None:
        """Forget all nodes but the root."""
        for node in list(self._by_number.values()):
            if node is not self.root:
                self._drop(node)

    def _drop(self, node: Node) -> None:
        del self._by_number[node.number]
        del self._by_key[node.key]
        os.close(node.fd)


class Handles:
    """All open files and directories."""

    def __init__(self, limit: int = MAX_HANDLES) -> None:
        self._limit = limit
        self._handles: dict[int, Handle] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, fd: int, node: Node, *, directory: bool = False) -> int:
        """A number for a descriptor, which is ours, also if this raises OSError (ENFILE)."""
        with closed_on_error(fd):
            self.check_room()
        self._last += 1
        self._handles[self._last] = Handle(fd, node.number, directory)
        return self._last

    def check_room(self) -> None:
        """Raise OSError (ENFILE) if there is no room for one more."""
        if len(self._handles) >= self._limit:
            raise error(errno.ENFILE)

    def fd(self, number: int, node: int, *, directory: bool = False) -> int:
        """The descriptor of a node's handle. Raises OSError (EBADF)."""
        handle = self._handles.get(number)
        if handle is None or (handle.node, handle.directory) != (node, directory):
            raise error(errno.EBADF)
        return handle.fd

    def release(self, number: int, node: int, *, directory: bool = False) -> None:
        """Close a handle. Raises OSError (EBADF)."""
        fd = self.fd(number, node, directory=directory)
        del self._handles[number]
        os.close(fd)

    def clear(self) -> None:
        """Close all handles."""
        for handle in self._handles.values():
            os.close(handle.fd)
        self._handles.clear()


def error(number: int) -> OSError:
    """An OSError with its text."""
    return OSError(number, os.strerror(number))


@contextmanager
def closed_on_error(fd: int) -> Iterator[None]:
    """Close a descriptor if the block raises."""
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def raise_descriptor_limit() -> tuple[int, int]:
    """Take all file descriptors that this process may have; returns limits (nodes, handles)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = MAX_NODES + MAX_HANDLES + SPARE_FDS
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    handles = min(MAX_HANDLES, (soft - SPARE_FDS) // 4)
    return soft - SPARE_FDS - handles, handles
