"""Operations on files: attributes, open files, mappings."""

from __future__ import annotations

import errno
import os
import stat

from hostfault.daxfs import fuse, libc
from hostfault.daxfs.nodes import Node, error
from hostfault.daxfs.share import FuseRequest, Share
from hostfault.daxfs.window import Mapping
from hostfault.daxfs.wire import MalformedError

MAX_IO = 256 * 1024  # bytes of one READ or WRITE
MAX_REMOVED = 4096 // fuse.RemovemappingOne.width()  # what Linux has room for in a request
MAX_ALLOCATED = 64 << 20  # bytes of one FALLOCATE: the host does it page by page
_PUNCH_HOLE = 0x2
_FALLOCATE_MODES = 0x1 | _PUNCH_HOLE | 0x10  # KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE


def getattr_(share: Share, request: FuseRequest) -> bytes:
    """GETATTR."""
    return _attributes(share.node(request))


def setattr_(share: Share, request: FuseRequest) -> bytes:
    """SETATTR: owner, mode, size and times, in that order (a new owner changes the mode)."""
    wanted = fuse.SetattrIn.decode(request.body)
    node = share.node(request)
    if wanted.valid & (fuse.FATTR_UID | fuse.FATTR_GID):
        uid = wanted.uid if wanted.valid & fuse.FATTR_UID else -1
        os.chown(node.path, uid, wanted.gid if wanted.valid & fuse.FATTR_GID else -1)
    if wanted.valid & fuse.FATTR_MODE:
        node.chmod(wanted.mode)
    if wanted.valid & fuse.FATTR_SIZE:
        _truncate(share, node, wanted)
    if wanted.valid & (fuse.FATTR_ATIME | fuse.FATTR_MTIME):
        libc.utimens(node.path, _atime(wanted), _mtime(wanted))
    return _attributes(node)


def open_(share: Share, request: FuseRequest) -> bytes:
    """OPEN."""
    node = share.node(request)
    fd = node.open(fuse.OpenIn.decode(request.body).flags)
    return fuse.OpenOut(share.handles.add(fd, node)).encode()


def read(share: Share, request: FuseRequest) -> bytes:
    """READ: by pread, so that a file that gets shorter gives fewer bytes, and no signal."""
    wanted = fuse.ReadIn.decode(request.body)
    fd = share.handles.fd(wanted.handle, request.header.node)
    return os.pread(fd, min(wanted.length, request.capacity, MAX_IO), _offset(wanted.offset))


def write(share: Share, request: FuseRequest) -> bytes:
    """WRITE."""
    wanted = fuse.ReadIn.decode(request.body)
    data = memoryview(request.body)[fuse.ReadIn.width() :]
    if len(data) != wanted.length or len(data) > MAX_IO:
        raise error(errno.EINVAL)
    fd = share.handles.fd(wanted.handle, request.header.node)
    st = os.fstat(fd)
    in_place = wanted.offset + len(data) <= st.st_size <= st.st_blocks * 512  # and no holes
    if not in_place:
        share.check_room(len(data))
    return fuse.WriteOut(os.pwrite(fd, data, _offset(wanted.offset))).encode()


def flush(share: Share, request: FuseRequest) -> bytes:
    """FLUSH: nothing is held back here."""
    share.handles.fd(fuse.HandleIn.decode(request.body).handle, request.header.node)
    return b""


def release(share: Share, request: FuseRequest) -> bytes:
    """RELEASE: close a file."""
    share.handles.release(fuse.HandleIn.decode(request.body).handle, request.header.node)
    return b""


def fsync(share: Share, request: FuseRequest) -> bytes:
    """FSYNC: what was written is in the host's page cache, and that is where it stays.

    The shared directory ends with the run, so nothing in it has to outlive a power cut; and while
    this daemon waited for a disk, nothing else that the guest asks would be answered.
    """
    share.handles.fd(fuse.FsyncIn.decode(request.body).handle, request.header.node)
    return b""


def fallocate(share: Share, request: FuseRequest) -> bytes:
    """FALLOCATE: allocate, punch a hole, write zeros."""
    wanted = fuse.FallocateIn.decode(request.body)
    if wanted.mode & ~_FALLOCATE_MODES:
        raise error(errno.EOPNOTSUPP)
    if wanted.length > MAX_ALLOCATED and not wanted.mode & _PUNCH_HOLE:
        raise error(errno.ENOSPC)
    fd = share.handles.fd(wanted.handle, request.header.node)
    if not wanted.mode & _PUNCH_HOLE:
        share.check_room(wanted.length)
    libc.fallocate(fd, wanted.mode, _offset(wanted.offset), _offset(wanted.length))
    return b""


def lseek(share: Share, request: FuseRequest) -> bytes:
    """LSEEK: where data or a hole begins; positions are the guest's own affair."""
    wanted = fuse.LseekIn.decode(request.body)
    if wanted.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise error(errno.EINVAL)
    fd = share.handles.fd(wanted.handle, request.header.node)
    if wanted.offset >= 1 << 63:  # a negative one of the guest's task: there is nothing (lseek(2))
        raise error(errno.ENXIO)
    return fuse.LseekOut(os.lseek(fd, wanted.offset, wanted.whence)).encode()


def access(share: Share, request: FuseRequest) -> bytes:
    """ACCESS: by owner, group and mode; the guest knows of other groups, this daemon does not."""
    mask = fuse.AccessIn.decode(request.body).mask
    if mask & ~(os.R_OK | os.W_OK | os.X_OK):
        raise error(errno.EINVAL)
    st = share.node(request).stat()
    if not permitted(st, request.header.uid, request.header.gid, mask):
        raise error(errno.EACCES)
    return b""


def permitted(st: os.stat_result, uid: int, gid: int, mask: int) -> bool:
    """Whether a user may read (4), write (2) or execute (1), as the mode bits have it."""
    if uid == 0:
        any_execute = stat.S_ISDIR(st.st_mode) or st.st_mode & 0o111
        return not mask & os.X_OK or bool(any_execute)
    shift = 6 if uid == st.st_uid else 3 if gid == st.st_gid else 0
    return mask & ~(st.st_mode >> shift) == 0


def statfs(share: Share, request: FuseRequest) -> bytes:
    """STATFS."""
    st = os.fstatvfs(share.node(request).fd)
    return fuse.StatfsOut(
        blocks=st.f_blocks,
        blocks_free=st.f_bfree,
        blocks_available=st.f_bavail,
        files=st.f_files,
        files_free=st.f_ffree,
        block_size=st.f_bsize,
        name_length=st.f_namemax,
        fragment_size=st.f_frsize,
    ).encode()


def setupmapping(share: Share, request: FuseRequest) -> bytes:
    """SETUPMAPPING: map a part of a file into the DAX window."""
    wanted = fuse.SetupmappingIn.decode(request.body)
    node = share.node(request)
    if wanted.handle != fuse.NO_HANDLE:
        share.handles.fd(wanted.handle, node.number)
    writable = bool(wanted.flags & fuse.MAP_WRITE)
    if writable:
        share.check_room(share.window.size)  # stores into holes of all that is mapped take room
    share.window.map(node, Mapping(wanted.moffset, wanted.length, wanted.foffset, writable))
    return b""


def removemapping(share: Share, request: FuseRequest) -> bytes:
    """REMOVEMAPPING: unmap ranges of the DAX window."""
    start, step = fuse.RemovemappingIn.width(), fuse.RemovemappingOne.width()
    count = fuse.RemovemappingIn.decode(request.body).count
    if count > MAX_REMOVED:
        raise MalformedError(f"{count} mappings to be removed")
    for position in range(count):
        one = fuse.RemovemappingOne.decode(request.body, start + position * step)
        share.window.unmap(one.moffset, one.length)
    return b""


def _attributes(node: Node) -> bytes:
    return fuse.AttributesOut().encode() + fuse.attributes(node.stat()).encode()


def _offset(value: int) -> int:
    """An offset or a length in a file. Raises OSError (EINVAL) beyond 2**63."""
    if value >= 1 << 63:
        raise error(errno.EINVAL)
    return value


def _truncate(share: Share, node: Node, wanted: fuse.SetattrIn) -> None:
    """Set the size, through a handle if the guest has one (the file may be read-only by now)."""
    size = _offset(wanted.size)
    if wanted.valid & fuse.FATTR_FH:
        os.ftruncate(share.handles.fd(wanted.handle, node.number), size)
        return
    fd = node.open(os.O_WRONLY)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _atime(wanted: fuse.SetattrIn) -> tuple[int, int]:
    if wanted.valid & fuse.FATTR_ATIME_NOW:
        return 0, libc.UTIME_NOW
    return _time(bool(wanted.valid & fuse.FATTR_ATIME), wanted.atime, wanted.atime_ns)


def _mtime(wanted: fuse.SetattrIn) -> tuple[int, int]:
    if wanted.valid & fuse.FATTR_MTIME_NOW:
        return 0, libc.UTIME_NOW
    return _time(bool(wanted.valid & fuse.FATTR_MTIME), wanted.mtime, wanted.mtime_ns)


def _time(given: bool, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not given:
        return 0, libc.UTIME_OMIT
    if nanoseconds >= 10**9:
        raise error(errno.EINVAL)
    return seconds, nanoseconds
