"""Reading directories."""

from __future__ import annotations

import errno

from hostfault.daxfs import fuse, libc
from hostfault.daxfs.nodes import Node, error
from hostfault.daxfs.share import FuseRequest, Share, entry, find

MAX_REPLY = 32 * 1024  # bytes; each entry may take a lookup
_NO_ENTRY = bytes(fuse.EntryOut.width() + fuse.Attributes.width())  # node 0: only the name is known


def opendir(share: Share, request: FuseRequest) -> bytes:
    """OPENDIR."""
    fuse.OpenIn.decode(request.body)
    node = share.node(request)
    fd = node.open_directory()
    return fuse.OpenOut(share.handles.add(fd, node, directory=True)).encode()


def readdir(share: Share, request: FuseRequest) -> bytes:
    """READDIR: names only."""
    return _read(share, request, plus=False)


def readdirplus(share: Share, request: FuseRequest) -> bytes:
    """READDIRPLUS: names, each with a lookup."""
    return _read(share, request, plus=True)


def releasedir(share: Share, request: FuseRequest) -> bytes:
    """RELEASEDIR: close a directory."""
    handle = fuse.HandleIn.decode(request.body).handle
    share.handles.release(handle, request.header.node, directory=True)
    return b""


def fsyncdir(share: Share, request: FuseRequest) -> bytes:
    """FSYNCDIR: nothing is written for a power cut; see files.fsync."""
    wanted = fuse.FsyncIn.decode(request.body)
    share.handles.fd(wanted.handle, request.header.node, directory=True)
    return b""


def _read(share: Share, request: FuseRequest, *, plus: bool) -> bytes:
    wanted = fuse.ReadIn.decode(request.body)
    node = share.node(request)
    fd = share.handles.fd(wanted.handle, node.number, directory=True)
    if wanted.offset >= 1 << 63:
        raise error(errno.EINVAL)
    space = min(wanted.length, request.capacity, MAX_REPLY)
    reply = bytearray()
    for found in libc.read_directory(fd, wanted.offset):
        record = _record(node, found)
        length = len(record) + (len(_NO_ENTRY) if plus else 0)
        if len(reply) + length > space:
            break
        if plus:  # only now: a lookup that does not reach the guest would never be forgotten
            reply += _entry(share, node, found.name)
        reply += record
    return bytes(reply)


def _record(node: Node, found: libc.DirectoryEntry) -> bytes:
    # The parent of the shared directory is none of the guest's business, nor does it ask.
    inode = node.key[1] if found.name == b".." else found.inode
    head = fuse.Dirent(inode, found.offset, len(found.name), found.kind)
    return fuse.padded(head.encode() + found.name)


def _entry(share: Share, directory: Node, name: bytes) -> bytes:
    if name in (b".", b".."):
        return _NO_ENTRY
    try:
        return entry(find(share, directory, name))
    except OSError:
        return _NO_ENTRY  # gone meanwhile, or too many nodes: the guest looks it up if it wants it
