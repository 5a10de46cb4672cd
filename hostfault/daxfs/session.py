"""One FUSE session: from INIT to DESTROY, opcode to operation, exception to errno."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from hostfault.daxfs import directories, files, fuse, names
from hostfault.daxfs.fuse import InHeader, InitExtension, InitIn, InitOut, Opcode, OutHeader
from hostfault.daxfs.share import FuseRequest, Share
from hostfault.daxfs.vhost_user import PeerError
from hostfault.daxfs.wire import MalformedError

PAGE = 4096
MAP_ALIGNMENT = 12  # log2 of PAGE
FLAGS = (
    fuse.BIG_WRITES
    | fuse.DO_READDIRPLUS
    | fuse.READDIRPLUS_AUTO
    | fuse.PARALLEL_DIROPS
    | fuse.MAX_PAGES
    | fuse.MAP_ALIGNMENT
    | fuse.INIT_EXT
)
FLAGS2 = fuse.HAS_INODE_DAX

Operation = Callable[[Share, FuseRequest], bytes]

OPERATIONS: Mapping[int, Operation] = {
    Opcode.LOOKUP: names.lookup,
    Opcode.FORGET: names.forget,
    Opcode.GETATTR: files.getattr_,
    Opcode.SETATTR: files.setattr_,
    Opcode.READLINK: names.readlink,
    Opcode.SYMLINK: names.symlink,
    Opcode.MKNOD: names.mknod,
    Opcode.MKDIR: names.mkdir,
    Opcode.UNLINK: names.unlink,
    Opcode.RMDIR: names.rmdir,
    Opcode.RENAME: names.rename,
    Opcode.LINK: names.link,
    Opcode.OPEN: files.open_,
    Opcode.READ: files.read,
    Opcode.WRITE: files.write,
    Opcode.STATFS: files.statfs,
    Opcode.RELEASE: files.release,
    Opcode.FSYNC: files.fsync,
    Opcode.FLUSH: files.flush,
    Opcode.OPENDIR: directories.opendir,
    Opcode.READDIR: directories.readdir,
    Opcode.RELEASEDIR: directories.releasedir,
    Opcode.FSYNCDIR: directories.fsyncdir,
    Opcode.ACCESS: files.access,
    Opcode.CREATE: names.create,
    Opcode.BATCH_FORGET: names.batch_forget,
    Opcode.FALLOCATE: files.fallocate,
    Opcode.READDIRPLUS: directories.readdirplus,
    Opcode.RENAME2: names.rename2,
    Opcode.LSEEK: files.lseek,
    Opcode.SETUPMAPPING: files.setupmapping,
    Opcode.REMOVEMAPPING: files.removemapping,
}

# SYNCFS has no operation: it would have the host's whole file system written back, and the guest
# wait for everybody else's data. After one ENOSYS Linux asks no more, and has syncfs(2) succeed.

NO_REPLY = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT))


class Session:
    """Answers requests."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._started = False

    def answer(self, data: bytes, capacity: int) -> bytes:
        """The whole reply to a request, not longer than ``capacity``; empty if there is none.

        Raises PeerError, if the front-end ends while the answer depends on it.
        """
        try:
            header = InHeader.decode(data)
        except MalformedError as error:
            self._share.log.refused(str(error))
            return b""
        body = data[InHeader.width() : header.length]
        request = FuseRequest(header, body, capacity - OutHeader.width())
        number, reply = self._attempt(request, len(data))
        if header.opcode in NO_REPLY:
            return b""
        if request.capacity < 0:
            self._refuse(request, f"no room for a reply in {capacity} bytes")
            return b""
        if len(reply) > request.capacity:
            self._refuse(request, f"no room for an answer of {len(reply)} bytes")
            number, reply = errno.EIO, b""
        return OutHeader(OutHeader.width() + len(reply), -number, header.unique).encode() + reply

    def _attempt(self, request: FuseRequest, length: int) -> tuple[int, bytes]:
        """Errno and answer."""
        try:
            if request.header.length != length:
                raise MalformedError(f"length {request.header.length} in {length} bytes")
            return 0, self._operate(request)
        except MalformedError as error:
            self._refuse(request, str(error))
            return errno.EINVAL, b""
        except OSError as error:
            return error.errno or errno.EIO, b""
        except PeerError:
            raise
        except Exception as error:  # a bug here must not take the guest's disk away
            self._share.log.event("bug", opcode=request.header.opcode, error=repr(error))
            return errno.EIO, b""

    def _operate(self, request: FuseRequest) -> bytes:
        opcode = request.header.opcode
        if opcode == Opcode.INIT:
            return self._init(request)
        if not self._started:
            raise MalformedError("a request before INIT")
        if opcode == Opcode.DESTROY:
            return self._destroy()
        if opcode == Opcode.INTERRUPT:
            return b""  # every request is done by the time that the next one is read
        operation = OPERATIONS.get(opcode)
        if operation is None:
            raise OSError(errno.ENOSYS, "")
        return operation(self._share, request)

    def _init(self, request: FuseRequest) -> bytes:
        """INIT: agree on a version; a second one means that the guest was started anew."""
        theirs = InitIn.decode(request.body)
        if theirs.major < fuse.MAJOR or (
            theirs.major == fuse.MAJOR and theirs.minor < fuse.OLDEST_MINOR
        ):
            raise OSError(errno.EPROTO, "")
        self._share.clear()
        self._started = theirs.major == fuse.MAJOR  # a newer one asks again in our version
        flags, flags2 = FLAGS & theirs.flags, FLAGS2 & _flags2(request, theirs)
        self._share.log.event(
            "init", major=theirs.major, minor=theirs.minor, flags=flags, flags2=flags2
        )
        return InitOut(
            major=fuse.MAJOR,
            minor=min(theirs.minor, fuse.MINOR) if self._started else fuse.MINOR,
            max_readahead=theirs.max_readahead,
            flags=flags,
            max_background=64,
            congestion_threshold=48,
            max_write=files.MAX_IO,
            time_granularity=1,
            max_pages=files.MAX_IO // PAGE,
            map_alignment=MAP_ALIGNMENT,
            flags2=flags2,
        ).encode()

    def _destroy(self) -> bytes:
        self._share.clear()
        self._started = False
        self._share.log.event("destroy")
        return b""

    def _refuse(self, request: FuseRequest, reason: str) -> None:
        header = request.header
        self._share.log.refused(reason, opcode=header.opcode, node=header.node)


def _flags2(request: FuseRequest, init: InitIn) -> int:
    """The second half of the flags that a guest offers. Raises MalformedError if it is not there.

    Kernels before 5.17 have none.
    """
    if not init.flags & fuse.INIT_EXT:
        return 0
    return InitExtension.decode(request.body, InitIn.width()).flags2


def fault(start: bytes) -> bytes:
    """The reply to a request with a buffer that can't be reached; ``start`` holds its header.

    That is EFAULT, as for a system call whose buffer is not there: a guest's task that hands on
    its mapping of a file which the host has truncated gets just that from its kernel. Raises
    MalformedError.
    """
    header = InHeader.decode(start)
    if header.opcode in NO_REPLY:
        return b""
    return OutHeader(OutHeader.width(), -errno.EFAULT, header.unique).encode()
