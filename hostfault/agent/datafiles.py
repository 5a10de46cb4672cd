"""The files that guests are given, made below a directory that guests can write to.

A guest may put a symbolic link, a FIFO or another file where a name was. So no name is trusted:
a file is made anew where nothing stands, below directories that are no links, and from then on
only its descriptor is used.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath


class DataFiles:
    """Files by the path that they were made at, all held open."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is what paths start from; no guest can write to that one itself."""
        self._directory = directory
        self._fds: dict[str, int] = {}

    def make(self, path: str) -> int:
        """Make an empty file in place of what stands there; returns it. Raises OSError."""
        with _parent(self._directory, path) as (folder, name):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o666, dir_fd=folder)
            owner = os.fstat(folder)
            if os.geteuid() == 0 and owner.st_uid != 0:  # whoever serves the directory must
                os.fchown(fd, owner.st_uid, owner.st_gid)  # be able to open the file
            return self._keep(path, fd)

    def adopt(self, path: str) -> int:
        """Take over a regular file that another program has made. Raises OSError."""
        with _parent(self._directory, path) as (folder, name):
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(f"no regular file at {path}")
        return self._keep(path, fd)

    def adopt_descriptor(self, pid: int, link: str, path: str) -> int:
        """Take over a file that another process has open, and that has no name. Raises OSError."""
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                if str(each.readlink()) == link:
                    return self._keep(path, os.open(each, os.O_RDWR | os.O_CLOEXEC))
        raise FileNotFoundError(f"process {pid} has no descriptor of {link}")

    def change_name(self, path: str, how: str) -> int:
        """Rename, unlink or replace a file that was made; it is still what :meth:`fd` gives.

        Returns the inode that has its name now, 0 for none. Raises OSError.
        """
        with _parent(self._directory, path) as (folder, name):
            other = name + b".other"
            if how == "rename":
                os.rename(name, other, src_dir_fd=folder, dst_dir_fd=folder)
            elif how == "unlink":
                os.unlink(name, dir_fd=folder)
            elif how == "replace":
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(other, flags, 0o666, dir_fd=folder))
                os.rename(other, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                raise ValueError(f"no such change of a name: {how}")
            with suppress(FileNotFoundError):
                return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
            return 0

    def _keep(self, path: str, fd: int) -> int:
        if path in self._fds:
            os.close(self._fds[path])
        self._fds[path] = fd
        return fd

    def fd(self, path: str) -> int:
        """The file that was made at a path, wherever it is by now. Raises FileNotFoundError."""
        if path not in self._fds:
            raise FileNotFoundError(f"no file was made at {path}")
        return self._fds[path]

    def close(self) -> None:
        """Let go of all files."""
        while self._fds:
            os.close(self._fds.popitem()[1])


@contextmanager
def _parent(directory: Path, path: str) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that a path leads to, through no link, and the last name."""
    *above, name = (os.fsencode(part) for part in PurePath(path).parts)
    if {b"..", b"/"} & {*above, name}:
        raise FileNotFoundError(f"{path} leads out of the directory")
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(directory, flags)
    try:
        for part in above:
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)
