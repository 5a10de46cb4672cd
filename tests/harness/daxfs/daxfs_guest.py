"""What a guest's kernel asks of the daemon, one method a FUSE request."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from daxfs_frontend import RANGE, FrontEnd

ROOT = 1
NO_HANDLE = (1 << 64) - 1


@dataclass(frozen=True)
class Attributes:
    """A part of stat(2)."""

    inode: int
    size: int
    mode: int
    links: int
    uid: int
    gid: int
    mtime: int


class Guest(FrontEnd):
    """A front-end whose guest has mounted the shared directory."""

    def init(self, major: int = 7, minor: int = 46, flags: int = (1 << 30) - 1) -> bytes:
        return self.fuse(26, 0, struct.pack("<16I", major, minor, 4096, flags, *[0] * 12))

    def destroy(self) -> None:
        self.fuse(38, 0)

    def entry(self, opcode: int, parent: int, body: bytes, **header: int) -> int:
        """A request whose reply names a node; returns that."""
        return entry_of(self.fuse(opcode, parent, body, **header))

    def lookup(self, name: bytes, parent: int = ROOT) -> int:
        return self.entry(1, parent, name + b"\0")

    def forget(self, node: int, count: int = 1) -> None:
        self.tell(2, node, struct.pack("<Q", count))

    def batch_forget(self, *nodes: int) -> None:
        ones = b"".join(struct.pack("<QQ", node, 1) for node in nodes)
        self.tell(42, 0, struct.pack("<II", len(nodes), 0) + ones)

    def getattr(self, node: int = ROOT) -> Attributes:
        return attributes_of(self.fuse(3, node, struct.pack("<IIQ", 0, 0, 0)), 16)

    def dax(self, node: int) -> bool:
        """Whether the daemon says that this one is to be mapped (FUSE_ATTR_DAX)."""
        reply = self.fuse(3, node, struct.pack("<IIQ", 0, 0, 0))
        return bool(struct.unpack_from("<I", reply, 16 + 84)[0] & 1 << 1)

    def setattr(self, node: int, valid: int, **values: int) -> Attributes:
        names = (
            "handle size owner atime mtime ctime atime_ns mtime_ns ctime_ns mode unused uid gid "
            "unused2"
        )
        given = [values.get(name, 0) for name in names.split()]
        return attributes_of(self.fuse(4, node, struct.pack("<II6Q8I", valid, 0, *given)), 16)

    def truncate(self, node: int, size: int) -> Attributes:
        return self.setattr(node, 1 << 3, size=size)

    def open(self, node: int, flags: int = 2) -> int:
        return handle_of(self.fuse(14, node, struct.pack("<II", flags, 0)))

    def create(self, name: bytes, parent: int = ROOT, flags: int = 2, **header: int) -> tuple:
        body = struct.pack("<4I", flags, 0o640, 0, 0) + name + b"\0"
        reply = self.fuse(35, parent, body, **header)
        return entry_of(reply), handle_of(reply[128:])

    def mknod(self, name: bytes, mode: int, parent: int = ROOT) -> int:
        return self.entry(8, parent, struct.pack("<4I", mode, 0, 0, 0) + name + b"\0")

    def mkdir(self, name: bytes, parent: int = ROOT, mode: int = 0o755, **header: int) -> int:
        return self.entry(9, parent, struct.pack("<II", mode, 0) + name + b"\0", **header)

    def symlink(self, name: bytes, target: bytes, parent: int = ROOT) -> int:
        return self.entry(6, parent, name + b"\0" + target + b"\0")

    def readlink(self, node: int) -> bytes:
        return self.fuse(5, node)

    def link(self, node: int, name: bytes, parent: int = ROOT) -> int:
        return self.entry(13, parent, struct.pack("<Q", node) + name + b"\0")

    def unlink(self, name: bytes, parent: int = ROOT) -> None:
        self.fuse(10, parent, name + b"\0")

    def rmdir(self, name: bytes, parent: int = ROOT) -> None:
        self.fuse(11, parent, name + b"\0")

    def rename(self, old: bytes, new: bytes, parent: int = ROOT, to: int = ROOT) -> None:
        self.fuse(12, parent, struct.pack("<Q", to) + old + b"\0" + new + b"\0")

    def rename2(self, old: bytes, new: bytes, flags: int, to: int = ROOT) -> None:
        self.fuse(45, ROOT, struct.pack("<QII", to, flags, 0) + old + b"\0" + new + b"\0")

    def read(self, node: int, handle: int, offset: int = 0, length: int = 4096) -> bytes:
        return self.fuse(15, node, io(handle, offset, length))

    def write(self, node: int, handle: int, data: bytes, offset: int = 0) -> int:
        reply = self.fuse(16, node, io(handle, offset, len(data)) + data)
        return int(struct.unpack("<II", reply)[0])

    def release(self, node: int, handle: int) -> None:
        self.fuse(18, node, struct.pack("<QIIQ", handle, 0, 0, 0))

    def flush(self, node: int, handle: int) -> None:
        self.fuse(25, node, struct.pack("<QIIQ", handle, 0, 0, 0))

    def fsync(self, node: int, handle: int, flags: int = 0, opcode: int = 20) -> None:
        self.fuse(opcode, node, struct.pack("<QII", handle, flags, 0))

    def statfs(self) -> tuple:
        return struct.unpack("<5Q4I24x", self.fuse(17, ROOT))

    def access(self, node: int, mask: int, uid: int, gid: int) -> None:
        self.fuse(34, node, struct.pack("<II", mask, 0), uid=uid, gid=gid)

    def fallocate(self, node: int, handle: int, offset: int, length: int, mode: int = 0) -> None:
        self.fuse(43, node, struct.pack("<QQQII", handle, offset, length, mode, 0))

    def lseek(self, node: int, handle: int, offset: int, whence: int) -> int:
        reply = self.fuse(46, node, struct.pack("<QQII", handle, offset, whence, 0))
        return int(struct.unpack("<Q", reply)[0])

    def opendir(self, node: int = ROOT) -> int:
        return handle_of(self.fuse(27, node, struct.pack("<II", 0, 0)))

    def releasedir(self, node: int, handle: int) -> None:
        self.fuse(29, node, struct.pack("<QIIQ", handle, 0, 0, 0))

    def readdir(
        self,
        node: int,
        handle: int,
        offset: int = 0,
        length: int = 4096,
        *,
        plus: bool = False,
        room: int = 8192,
    ) -> list[tuple[bytes, int, int]]:
        """(name, offset behind it, node or 0) of each entry that fits into ``length``."""
        reply = self.fuse(44 if plus else 28, node, io(handle, offset, length), room)
        found = []
        while reply:
            named = 0
            if plus:
                named, reply = entry_of(reply), reply[128:]
            _, behind, size, _ = struct.unpack_from("<QQII", reply)
            found.append((reply[24 : 24 + size], behind, named))
            reply = reply[(24 + size + 7) // 8 * 8 :]
        return found

    def map(
        self,
        node: int,
        foffset: int = 0,
        moffset: int = 0,
        *,
        length: int = RANGE,
        writable: bool = False,
        handle: int = NO_HANDLE,
    ) -> None:
        """SETUPMAPPING."""
        flags = 3 if writable else 2
        self.fuse(48, node, struct.pack("<5Q", handle, foffset, length, flags, moffset))

    def unmap(self, *moffsets: int, length: int = RANGE) -> None:
        """REMOVEMAPPING."""
        ones = b"".join(struct.pack("<QQ", moffset, length) for moffset in moffsets)
        self.fuse(49, 0, struct.pack("<I", len(moffsets)) + ones)

    def syncfs(self) -> None:
        self.fuse(50, ROOT, struct.pack("<Q", 0))


def io(handle: int, offset: int, length: int) -> bytes:
    """struct fuse_read_in, which is struct fuse_write_in too."""
    return struct.pack("<QQIIQII", handle, offset, length, 0, 0, 0, 0)


def entry_of(reply: bytes) -> int:
    """The node that a struct fuse_entry_out names."""
    return int(struct.unpack_from("<Q", reply)[0])


def attributes_of(reply: bytes, at: int) -> Attributes:
    """A struct fuse_attr."""
    fields = struct.unpack_from("<6Q10I", reply, at)
    inode, size, _, _, mtime = fields[:5]
    mode, links, uid, gid = fields[9:13]
    return Attributes(inode, size, mode, links, uid, gid, mtime)


def handle_of(reply: bytes) -> int:
    """The handle in a struct fuse_open_out."""
    return int(struct.unpack_from("<Q", reply)[0])
