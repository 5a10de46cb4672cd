"""Operations on names.

A name is always one component, resolved relative to a directory's descriptor and never through
a symbolic link: only the guest follows links, within what it sees.
"""

from __future__ import annotations

import errno
import os
import stat

from hostfault.daxfs import fuse, libc
from hostfault.daxfs.nodes import OPEN_FLAGS, Node, closed_on_error, error
from hostfault.daxfs.share import FuseRequest, Share, component, entry, find

_RENAME_FLAGS = 1 | 2  # RENAME_NOREPLACE, RENAME_EXCHANGE
_MAX_TARGET = 4095  # bytes of a symbolic link


def lookup(share: Share, request: FuseRequest) -> bytes:
    """LOOKUP: the node of a name."""
    (name,) = fuse.names(request.body, 1)
    return entry(find(share, share.node(request), name))


def forget(share: Share, request: FuseRequest) -> bytes:
    """FORGET: take back lookups of one node."""
    share.nodes.forget(request.header.node, fuse.ForgetIn.decode(request.body).lookups)
    return b""


def batch_forget(share: Share, request: FuseRequest) -> bytes:
    """BATCH_FORGET: take back lookups of many nodes."""
    start, step = fuse.BatchForgetIn.width(), fuse.ForgetOne.width()
    for position in range(fuse.BatchForgetIn.decode(request.body).count):
        one = fuse.ForgetOne.decode(request.body, start + position * step)
        if share.nodes.knows(one.node):  # the others are to be forgotten all the same
            share.nodes.forget(one.node, one.lookups)
    return b""


def mkdir(share: Share, request: FuseRequest) -> bytes:
    """MKDIR."""
    wanted = fuse.MkdirIn.decode(request.body)
    directory, name = _target(share, request, fuse.MkdirIn.width())
    os.mkdir(name, wanted.mode & 0o7777, dir_fd=directory.fd)
    return _created(share, request, directory, name, wanted.mode)


def mknod(share: Share, request: FuseRequest) -> bytes:
    """MKNOD: regular files, FIFOs and sockets; a guest makes no devices on the host."""
    wanted = fuse.MknodIn.decode(request.body)
    if stat.S_IFMT(wanted.mode) not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
        raise error(errno.EPERM)
    directory, name = _target(share, request, fuse.MknodIn.width())
    os.mknod(name, stat.S_IFMT(wanted.mode) | wanted.mode & 0o7777, dir_fd=directory.fd)
    return _created(share, request, directory, name, wanted.mode)


def symlink(share: Share, request: FuseRequest) -> bytes:
    """SYMLINK: the target is text that this daemon never follows."""
    name, target = fuse.names(request.body, 2)
    if not 0 < len(target) <= _MAX_TARGET:
        raise error(errno.EINVAL)
    share.check_new()
    directory = share.node(request)
    os.symlink(target, component(name), dir_fd=directory.fd)
    return _created(share, request, directory, name, None)


def link(share: Share, request: FuseRequest) -> bytes:
    """LINK: one more name for a node."""
    node = share.nodes.get(fuse.LinkIn.decode(request.body).node)
    directory, name = _target(share, request, fuse.LinkIn.width())
    os.link(node.path, name, dst_dir_fd=directory.fd, follow_symlinks=True)
    return entry(find(share, directory, name))


def create(share: Share, request: FuseRequest) -> bytes:
    """CREATE: make and open a regular file, or open the one that is there."""
    wanted = fuse.CreateIn.decode(request.body)
    directory, name = _target(share, request, fuse.CreateIn.width())
    share.handles.check_room()
    try:
        flags = wanted.flags & OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, wanted.mode & 0o7777, dir_fd=directory.fd)
    except FileExistsError:
        if wanted.flags & os.O_EXCL:
            raise
        node = find(share, directory, name)
        with share.nodes.kept(node):
            handle = share.handles.add(node.open(wanted.flags), node)
    else:
        with closed_on_error(fd):
            opened = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            node = share.nodes.adopt(opened)
            with share.nodes.kept(node):
                _give_to_caller(request, directory, node, wanted.mode)
        with share.nodes.kept(node):
            handle = share.handles.add(fd, node)
    return entry(node) + fuse.OpenOut(handle).encode()


def unlink(share: Share, request: FuseRequest) -> bytes:
    """UNLINK."""
    (name,) = fuse.names(request.body, 1)
    os.unlink(component(name), dir_fd=share.node(request).fd)
    return b""


def rmdir(share: Share, request: FuseRequest) -> bytes:
    """RMDIR."""
    (name,) = fuse.names(request.body, 1)
    os.rmdir(component(name), dir_fd=share.node(request).fd)
    return b""


def rename(share: Share, request: FuseRequest) -> bytes:
    """RENAME."""
    wanted = fuse.RenameIn.decode(request.body)
    return _rename(share, request, wanted.new_directory, fuse.RenameIn.width(), 0)


def rename2(share: Share, request: FuseRequest) -> bytes:
    """RENAME2: rename with flags."""
    wanted = fuse.Rename2In.decode(request.body)
    if wanted.flags & ~_RENAME_FLAGS:
        raise error(errno.EINVAL)
    return _rename(share, request, wanted.new_directory, fuse.Rename2In.width(), wanted.flags)


def readlink(share: Share, request: FuseRequest) -> bytes:
    """READLINK: the target as text."""
    return os.readlink(b"", dir_fd=share.node(request).fd)


def _rename(share: Share, request: FuseRequest, new: int, start: int, flags: int) -> bytes:
    old_name, new_name = map(component, fuse.names(request.body[start:], 2))
    libc.rename(share.node(request).fd, old_name, share.nodes.get(new).fd, new_name, flags)
    return b""


def _target(share: Share, request: FuseRequest, start: int) -> tuple[Node, bytes]:
    """The directory and the name of something to be made; nothing is, if it can't have a node."""
    share.check_new()
    (name,) = fuse.names(request.body[start:], 1)
    return share.node(request), component(name)


def _created(
    share: Share, request: FuseRequest, directory: Node, name: bytes, mode: int | None
) -> bytes:
    node = find(share, directory, name)
    with share.nodes.kept(node):
        _give_to_caller(request, directory, node, mode)
    return entry(node)


def _give_to_caller(request: FuseRequest, directory: Node, node: Node, mode: int | None) -> None:
    """Make the caller in the guest the owner, if this daemon may do that.

    A directory with the set-group-ID bit decides on the group itself. Changing the owner clears
    the set-ID bits, so ``mode`` (None for a link) is set again. As root without CAP_CHOWN (EPERM),
    or in a user namespace that does not know the caller's number (EINVAL), the file stays ours,
    as it does for any other user's daemon.
    """
    if os.geteuid() != 0:
        return
    keeps_group = directory.stat().st_mode & stat.S_ISGID
    try:
        os.chown(node.path, request.header.uid, -1 if keeps_group else request.header.gid)
    except OSError as failure:
        if failure.errno not in (errno.EPERM, errno.EINVAL):
            raise
        return
    if mode is not None and mode & (stat.S_ISUID | stat.S_ISGID):
        node.chmod(mode)
