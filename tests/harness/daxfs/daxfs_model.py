"""What the shared directory must be, as a model in memory."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


@dataclass(eq=False)
class Inode:
    """A file of any kind."""

    kind: str  # "directory" | "file" | "link" | "fifo"
    data: bytearray = field(default_factory=bytearray)  # of a file; of a link: where it leads
    entries: dict[bytes, Inode] = field(default_factory=dict)  # of a directory
    removed: bool = False  # a directory that is in no other one any more
    names: int = 1

    @property
    def can_hold(self) -> int:
        """0, or the error of looking for a name in it."""
        return 0 if self.kind == "directory" else errno.ENOTDIR

    @property
    def can_open(self) -> int:
        """0, or the error of opening it as a file."""
        if self.kind == "file":
            return 0
        return errno.EISDIR if self.kind == "directory" else errno.EOPNOTSUPP


def loaded(path: Path) -> Inode:
    """The model of what is on the disk."""
    return _loaded(path, {})


def _loaded(path: Path, known: dict[int, Inode]) -> Inode:
    st = path.lstat()
    if st.st_ino in known:
        return known[st.st_ino]
    inode = known[st.st_ino] = Inode(KINDS.get(stat.S_IFMT(st.st_mode), "fifo"))
    inode.names = 1 if inode.kind == "directory" else st.st_nlink
    if inode.kind == "directory":
        inode.entries = {
            os.fsencode(each.name): _loaded(each, known) for each in sorted(path.iterdir())
        }
    elif inode.kind == "file":
        inode.data = bytearray(path.read_bytes())
    elif inode.kind == "link":
        inode.data = bytearray(os.fsencode(path.readlink()))
    return inode


def lookup(directory: Inode, name: bytes) -> tuple[int, Inode | None]:
    """Error, or what the name is."""
    if directory.can_hold:
        return directory.can_hold, None
    found = directory.entries.get(name)
    return (0, found) if found is not None else (errno.ENOENT, None)


def can_add(directory: Inode, name: bytes) -> int:
    """0, or the error of making something of that name."""
    if directory.can_hold:
        return directory.can_hold
    if name in directory.entries:
        return errno.EEXIST
    return errno.ENOENT if directory.removed else 0


def unlink(directory: Inode, name: bytes) -> int:
    """Remove a name; the error."""
    number, found = lookup(directory, name)
    if found is None:
        return number
    if found.kind == "directory":
        return errno.EISDIR
    del directory.entries[name]
    found.names -= 1
    return 0


def rmdir(directory: Inode, name: bytes) -> int:
    """Remove a directory; the error."""
    number, found = lookup(directory, name)
    if found is None:
        return number
    if found.kind != "directory":
        return errno.ENOTDIR
    if found.entries:
        return errno.ENOTEMPTY
    del directory.entries[name]
    found.removed = True
    return 0


def link(inode: Inode, directory: Inode, name: bytes) -> int:
    """One more name; the error."""
    number = can_add(directory, name)
    if number:
        return number
    if inode.kind == "directory":
        return errno.EPERM
    if not inode.names:
        return errno.ENOENT
    directory.entries[name] = inode
    inode.names += 1
    return 0


def rename(old: Inode, old_name: bytes, new: Inode, new_name: bytes) -> int:
    """Rename what is no directory, or within one directory; the error."""
    if old.can_hold or new.can_hold:
        return errno.ENOTDIR
    found = old.entries.get(old_name)
    if found is None:
        return errno.ENOENT
    there = new.entries.get(new_name)
    if there is found:
        return 0
    if there is not None and _holds(there, old):
        return errno.ENOTEMPTY  # before the kernel looks at what kind it is
    number = _can_replace(found, there, new)
    if number:
        return number
    if there is not None:
        there.names -= 1
        there.removed = there.kind == "directory"
    new.entries[new_name] = old.entries.pop(old_name)
    return 0


def _holds(inode: Inode, directory: Inode) -> bool:
    """Whether a directory is this one or somewhere below."""
    return inode is directory or any(
        _holds(each, directory) for each in inode.entries.values() if each.kind == "directory"
    )


def _can_replace(found: Inode, there: Inode | None, new: Inode) -> int:
    if there is None:
        return errno.ENOENT if new.removed else 0
    if found.kind == "directory":
        if there.kind != "directory":
            return errno.ENOTDIR
        return errno.ENOTEMPTY if there.entries else 0
    return errno.EISDIR if there.kind == "directory" else 0


def write(inode: Inode, data: bytes, offset: int) -> None:
    """pwrite(2)."""
    if len(inode.data) < offset:
        inode.data.extend(bytes(offset - len(inode.data)))
    inode.data[offset : offset + len(data)] = data


def truncate(inode: Inode, size: int) -> None:
    """ftruncate(2)."""
    del inode.data[size:]
    inode.data.extend(bytes(size - len(inode.data)))


def allocate(inode: Inode, mode: int, offset: int, length: int) -> None:
    """fallocate(2): 0, KEEP_SIZE, or KEEP_SIZE with PUNCH_HOLE."""
    if mode == 0 and len(inode.data) < offset + length:
        truncate(inode, offset + length)
    if mode == 3:
        end = min(len(inode.data), offset + length)
        inode.data[offset:end] = bytes(max(0, end - offset))
