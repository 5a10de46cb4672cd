"""The shared directory as one guest sees it: what every operation works on."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.fuse import EntryOut, InHeader, attributes
from hostfault.daxfs.nodes import Handles, Node, Nodes, error
from hostfault.daxfs.window import Window

MAX_NAME = 255  # bytes
KEPT_PART = 16
BLOCK = 4096  # bytes that something new may take


@dataclass(frozen=True)
class FuseRequest:
    """A FUSE request whose length has been checked."""

    header: InHeader
    body: bytes  # what follows the header
    capacity: int  # bytes that the answer may have


@dataclass(frozen=True)
class Share:
    """Nodes, handles and the DAX window."""

    nodes: Nodes
    handles: Handles
    window: Window
    log: EventLog
    keep_free: int = 0  # bytes of the host's file system that are not for the guest

    def node(self, request: FuseRequest) -> Node:
        """The node that a request is about. Raises OSError (ESTALE)."""
        return self.nodes.get(request.header.node)

    def check_room(self, length: int) -> None:
        """Raise OSError (ENOSPC) if so many bytes would nearly fill the host's file system.

        What is kept free is ``keep_free``, or a sixteenth of it if that is less.
        """
        if self.keep_free:
            st = os.fstatvfs(self.nodes.root.fd)
            kept = min(self.keep_free, st.f_blocks * st.f_frsize // KEPT_PART)
            if st.f_bavail * st.f_frsize < kept + length:
                raise error(errno.ENOSPC)

    def check_new(self) -> None:
        """Raise OSError (ENOSPC, ENFILE) if there is no room for something new.

        Where a file system counts its inodes, a sixteenth of them is kept free, too.
        """
        self.check_room(BLOCK)
        st = os.fstatvfs(self.nodes.root.fd)
        if self.keep_free and st.f_files and st.f_favail < st.f_files // KEPT_PART:
            raise error(errno.ENOSPC)
        self.nodes.check_room()

    def clear(self) -> None:
        """Forget everything that a guest ever asked for."""
        self.handles.clear()
        self.nodes.clear()
        self.window.clear()


def component(name: bytes) -> bytes:
    """A name that can only mean an entry of its directory. Raises OSError."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL)
    if len(name) > MAX_NAME:
        raise error(errno.ENAMETOOLONG)
    return name


def find(share: Share, directory: Node, name: bytes) -> Node:
    """The node of a name in a directory, with one lookup more. Raises OSError."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    return share.nodes.adopt(os.open(component(name), flags, dir_fd=directory.fd))


def entry(node: Node) -> bytes:
    """The reply that names a node."""
    return EntryOut(node.number).encode() + attributes(node.stat()).encode()
