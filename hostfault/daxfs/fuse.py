"""FUSE messages.

Source: Linux, include/uapi/linux/fuse.h, protocol 7.38. A request is an :class:`InHeader`, the
structure of its opcode, then names (each ended by NUL) or data. A reply is an
:class:`OutHeader`, then the answer.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass

from hostfault.daxfs.wire import (
    I32,
    I64,
    U16,
    U32,
    U64,
    MalformedError,
    Pad24,
    Pad28,
    Wire,
)

MAJOR = 7
MINOR = 38  # the newest that this daemon knows
OLDEST_MINOR = 31  # the first with SETUPMAPPING
ROOT_ID = 1
NO_HANDLE = (1 << 64) - 1

# Flags of INIT.
BIG_WRITES = 1 << 5
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
MAP_ALIGNMENT = 1 << 26
INIT_EXT = 1 << 30  # there are flags in flags2

# Flags of INIT, in flags2.
HAS_INODE_DAX = 1 << 1  # attributes say which files are to be mapped

ATTR_DAX = 1 << 1  # of Attributes.flags: map it, if the guest leaves that to us

# Bits of SetattrIn.valid.
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8

MAP_WRITE = 1  # of SetupmappingIn.flags


class Opcode(enum.IntEnum):
    """What the guest asks for; all others are answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50


@dataclass(frozen=True)
class InHeader(Wire):
    """Before every request."""

    length: U32  # of the whole request
    opcode: U32
    unique: U64
    node: U64
    uid: U32
    gid: U32
    pid: U32
    extension: U16
    padding: U16


@dataclass(frozen=True)
class OutHeader(Wire):
    """Before every reply."""

    length: U32  # of the whole reply
    error: I32  # 0 or a negative errno
    unique: U64


@dataclass(frozen=True)
class InitIn(Wire):
    """Request of INIT, as far as it is of interest here."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32


@dataclass(frozen=True)
class InitExtension(Wire):
    """What follows :class:`InitIn` where its flags have INIT_EXT."""

    flags2: U32


@dataclass(frozen=True)
class InitOut(Wire):
    """Reply to INIT."""

    major: U32
    minor: U32
    max_readahead: U32
    flags: U32
    max_background: U16
    congestion_threshold: U16
    max_write: U32
    time_granularity: U32  # nanoseconds
    max_pages: U16
    map_alignment: U16  # log2 of the alignment of foffset and moffset
    flags2: U32 = 0
    unused: Pad28 = bytes(28)


@dataclass(frozen=True)
class Attributes(Wire):
    """What stat(2) says."""

    inode: U64
    size: U64
    blocks: U64
    atime: U64
    mtime: U64
    ctime: U64
    atime_ns: U32
    mtime_ns: U32
    ctime_ns: U32
    mode: U32
    links: U32
    uid: U32
    gid: U32
    rdev: U32
    block_size: U32
    flags: U32 = 0


@dataclass(frozen=True)
class AttributesOut(Wire):
    """Before the :class:`Attributes` of a reply to GETATTR or SETATTR."""

    valid: U64 = 0  # seconds that the guest may believe them
    valid_ns: U32 = 0
    padding: U32 = 0


@dataclass(frozen=True)
class EntryOut(Wire):
    """Before the :class:`Attributes` of a reply that names a node."""

    node: U64
    generation: U64 = 0
    entry_valid: U64 = 0
    attributes_valid: U64 = 0
    entry_valid_ns: U32 = 0
    attributes_valid_ns: U32 = 0


@dataclass(frozen=True)
class ForgetIn(Wire):
    """Request of FORGET."""

    lookups: U64


@dataclass(frozen=True)
class BatchForgetIn(Wire):
    """Before the :class:`ForgetOne` of BATCH_FORGET."""

    count: U32
    padding: U32


@dataclass(frozen=True)
class ForgetOne(Wire):
    """One entry of BATCH_FORGET."""

    node: U64
    lookups: U64


@dataclass(frozen=True)
class SetattrIn(Wire):
    """Request of SETATTR."""

    valid: U32  # FATTR_*
    padding: U32
    handle: U64
    size: U64
    lock_owner: U64
    atime: I64
    mtime: I64
    ctime: I64
    atime_ns: U32
    mtime_ns: U32
    ctime_ns: U32
    mode: U32
    unused4: U32
    uid: U32
    gid: U32
    unused5: U32


@dataclass(frozen=True)
class MknodIn(Wire):
    """Before the name of MKNOD."""

    mode: U32
    rdev: U32
    umask: U32
    padding: U32


@dataclass(frozen=True)
class MkdirIn(Wire):
    """Before the name of MKDIR."""

    mode: U32
    umask: U32


@dataclass(frozen=True)
class RenameIn(Wire):
    """Before the two names of RENAME."""

    new_directory: U64


@dataclass(frozen=True)
class Rename2In(Wire):
    """Before the two names of RENAME2."""

    new_directory: U64
    flags: U32
    padding: U32


@dataclass(frozen=True)
class LinkIn(Wire):
    """Before the name of LINK."""

    node: U64


@dataclass(frozen=True)
class OpenIn(Wire):
    """Request of OPEN and OPENDIR."""

    flags: U32
    open_flags: U32


@dataclass(frozen=True)
class CreateIn(Wire):
    """Before the name of CREATE."""

    flags: U32
    mode: U32
    umask: U32
    open_flags: U32


@dataclass(frozen=True)
class OpenOut(Wire):
    """Reply to OPEN and OPENDIR, and the end of the one to CREATE."""

    handle: U64
    open_flags: U32 = 0
    padding: U32 = 0


@dataclass(frozen=True)
class HandleIn(Wire):
    """The start of RELEASE, RELEASEDIR and FLUSH, as far as it is of interest here."""

    handle: U64


@dataclass(frozen=True)
class ReadIn(Wire):
    """Request of READ, READDIR and READDIRPLUS, and the start of WRITE."""

    handle: U64
    offset: U64
    length: U32
    io_flags: U32
    lock_owner: U64
    flags: U32
    padding: U32


@dataclass(frozen=True)
class WriteOut(Wire):
    """Reply to WRITE."""

    length: U32
    padding: U32 = 0


@dataclass(frozen=True)
class FsyncIn(Wire):
    """Request of FSYNC and FSYNCDIR."""

    handle: U64
    flags: U32
    padding: U32


@dataclass(frozen=True)
class FallocateIn(Wire):
    """Request of FALLOCATE."""

    handle: U64
    offset: U64
    length: U64
    mode: U32
    padding: U32


@dataclass(frozen=True)
class LseekIn(Wire):
    """Request of LSEEK."""

    handle: U64
    offset: U64
    whence: U32
    padding: U32


@dataclass(frozen=True)
class LseekOut(Wire):
    """Reply to LSEEK."""

    offset: U64


@dataclass(frozen=True)
class AccessIn(Wire):
    """Request of ACCESS."""

    mask: U32
    padding: U32


@dataclass(frozen=True)
class StatfsOut(Wire):
    """Reply to STATFS."""

    blocks: U64
    blocks_free: U64
    blocks_available: U64
    files: U64
    files_free: U64
    block_size: U32
    name_length: U32
    fragment_size: U32
    padding: U32 = 0
    spare: Pad24 = bytes(24)


@dataclass(frozen=True)
class Dirent(Wire):
    """Before a name in the reply to READDIR; padded to eight bytes."""

    inode: U64
    offset: U64
    name_length: U32
    kind: U32


@dataclass(frozen=True)
class SetupmappingIn(Wire):
    """Request of SETUPMAPPING."""

    handle: U64  # NO_HANDLE from Linux, which means the node
    foffset: U64
    length: U64
    flags: U64
    moffset: U64


@dataclass(frozen=True)
class RemovemappingIn(Wire):
    """Before the :class:`RemovemappingOne` of REMOVEMAPPING."""

    count: U32


@dataclass(frozen=True)
class RemovemappingOne(Wire):
    """One entry of REMOVEMAPPING."""

    moffset: U64
    length: U64


def attributes(st: os.stat_result) -> Attributes:
    """A stat result as FUSE wants it. Every regular file is one to be mapped."""
    return Attributes(
        inode=st.st_ino,
        size=st.st_size,
        blocks=st.st_blocks,
        atime=_seconds(st.st_atime_ns),
        mtime=_seconds(st.st_mtime_ns),
        ctime=_seconds(st.st_ctime_ns),
        atime_ns=st.st_atime_ns % 10**9,
        mtime_ns=st.st_mtime_ns % 10**9,
        ctime_ns=st.st_ctime_ns % 10**9,
        mode=st.st_mode,
        links=st.st_nlink,
        uid=st.st_uid,
        gid=st.st_gid,
        rdev=_device_number(st.st_rdev),
        block_size=st.st_blksize,
        flags=ATTR_DAX if stat.S_ISREG(st.st_mode) else 0,
    )


def names(data: bytes, count: int) -> list[bytes]:
    """``data`` as exactly ``count`` strings, each ended by NUL. Raises MalformedError."""
    if not data.endswith(b"\0") or data.count(b"\0") != count:
        raise MalformedError(f"{len(data)} bytes that are not {count} names")
    return data[:-1].split(b"\0")


def padded(data: bytes) -> bytes:
    """``data`` filled with NUL to a multiple of eight bytes."""
    return data + bytes(-len(data) % 8)


def _seconds(nanoseconds: int) -> int:
    return nanoseconds // 10**9 % (1 << 64)  # times before 1970 in two's complement


def _device_number(rdev: int) -> int:
    """Linux's 32-bit encoding: 12 bits of major amid 20 bits of minor."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12) & 0xFFFFFFFF
