"""Things that are dear to make, kept in directories named after a hash of all their inputs.

Layout below the root, for an entry ``KEY`` of a ``KIND``::

    KIND/KEY/            the finished entry: it appears by one rename and never changes
    KIND/KEY*.partial    being built, or being removed
    KIND/KEY.lock        flock: exclusive while building or removing, shared while in use
    KIND/discards.lock   flock: exclusive while an entry is discarded

A lock belongs to an open file, so the kernel drops it when its holder dies however that happens.
That is how the work of dead builders is told from that of live ones.

A discarded entry loses its lock file, too: whoever still uses what it was holds the old one, and
nobody who builds it anew waits for that. So a lock counts as long as it is the file of that name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import HostfaultError, SetupError

log = logging.getLogger(__name__)

BUILD_PATIENCE = 3600.0  # seconds to wait for another run that builds the same
DISCARD_PATIENCE = 60.0  # seconds: it is a rename, and the removal of some files
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def default_cache() -> Cache:
    """The cache of this user: ``$HOSTFAULT_CACHE``, or below ``$XDG_CACHE_HOME`` or ~/.cache.

    Raises :class:`SetupError` for a user who has none of them, as in a container with a user id
    of its own choice.
    """
    if chosen := os.environ.get("HOSTFAULT_CACHE"):
        return Cache(Path(chosen))
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Cache(Path(base) / "hostfault")
    try:
        return Cache(Path.home() / ".cache" / "hostfault")
    except RuntimeError as error:
        raise SetupError(
            "this user has no home directory: set HOSTFAULT_CACHE to a directory for the cache"
        ) from error


def key_of(inputs: Mapping[str, str | bytes | Path]) -> str:
    """A hash of named inputs: text and bytes as they are, files by content, directories by tree.

    Of a file, its being executable counts; its times and owner do not. A symbolic link inside a
    directory counts by its target's name.
    """
    total = hashlib.sha256()
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, Path):
            _feed(total, "path", name)
            for part in _tree_parts(value):
                _feed(total, *part)
        else:
            _feed(total, "value", name, value)
    return total.hexdigest()[:32]


class Cache:
    """A directory of finished entries, shared by any number of runs at the same time.

    An entry that this object handed out stays locked against :meth:`prune` until
    :meth:`release`, :meth:`close` or the end of the process.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._held: dict[Path, int] = {}
        self._grown: set[str] = set()  # kinds that an entry was added to
        self._guard = threading.Lock()

    def obtain(self, kind: str, key: str, build: Callable[[Path], None]) -> Path:
        """The directory of an entry, built by ``build(empty_directory)`` if there is none.

        Two runs that want the same entry build it once. A ``build`` that fails leaves nothing
        and its exception passes through; a full disk, or a cache that this user may not write
        to, raises :class:`SetupError`.
        """
        if not _KEY.match(key):
            raise ValueError(f"not a cache key: {key!r}")
        entry = self.root / kind / key
        if not self._holds(entry):
            self._lock_and_build(entry, build)
        with _usable(self.root):
            os.utime(entry)  # the time of last use, for prune()
        return entry

    def release(self, entry: Path) -> None:
        """Say that an entry is no longer in use here; it may be pruned from now on."""
        with self._guard:
            descriptor = self._held.pop(entry, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Release every entry."""
        for entry in list(self._held):
            self.release(entry)

    def discard(self, entry: Path) -> None:
        """Remove an entry that proved to be bad, even if other runs use it: it is bad for all.

        What they have open stays readable to them; the next :meth:`obtain` builds it anew. One
        that another run has discarded since it was handed out here is left as it is now.
        """
        with _discarding(entry):
            with self._guard:
                held = self._held.get(entry)
            if held is None or _is_current(held, entry):
                _lock_file(entry).unlink(missing_ok=True)
                _remove(entry)
        self.release(entry)

    def has_grown(self, kind: str) -> bool:
        """Whether this object has added to a kind; to measure what others hold takes time."""
        return kind in self._grown

    def prune(self, kind: str, max_bytes: int) -> None:
        """Remove entries of a kind, least recently used first, until they take ``max_bytes``.

        Entries in use are kept, whatever they take; those that another run removes meanwhile
        are skipped.
        """
        with _usable(self.root):
            self._sweep(kind)
            self._remove_oldest(kind, max_bytes)

    def _remove_oldest(self, kind: str, max_bytes: int) -> None:
        entries = _by_last_use(self._entries(kind))
        sizes = {entry: disk_usage(entry) for entry in entries}
        excess = sum(sizes.values()) - max_bytes
        for entry in entries:
            if excess <= 0:
                return
            descriptor = _open_lock(entry)
            try:
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    _remove(entry)
                    excess -= sizes[entry]
            finally:
                os.close(descriptor)

    def _holds(self, entry: Path) -> bool:
        with self._guard:
            held = self._held.get(entry)
            return held is not None and entry.is_dir() and _is_current(held, entry)

    def _lock_and_build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Get a shared lock on an existing entry, building it first under an exclusive one."""
        self.release(entry)
        with _clear_when_full(self.root), _usable(self.root):
            entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor = None
        while descriptor is None:  # once, unless the entry is discarded meanwhile
            descriptor = self._try_to_build(entry, build)
        with self._guard:
            previous = self._held.pop(entry, None)
            self._held[entry] = descriptor
        if previous is not None:
            os.close(previous)

    def _try_to_build(self, entry: Path, build: Callable[[Path], None]) -> int | None:
        """The descriptor of the lock; None if that is no longer the entry's."""
        with _clear_when_full(self.root), _usable(self.root):
            descriptor = _open_lock(entry)
        try:
            if self._locked_and_built(descriptor, entry, build):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _locked_and_built(
        self, descriptor: int, entry: Path, build: Callable[[Path], None]
    ) -> bool:
        if not _wait_for_lock(descriptor, fcntl.LOCK_SH, entry):
            return False
        while not entry.is_dir():
            # flock drops the shared lock before it gets the other: look again after each.
            if not _wait_for_lock(descriptor, fcntl.LOCK_EX, entry):
                return False
            if not entry.is_dir():
                with _usable(self.root):
                    self._sweep(entry.parent.name)
                self._build(entry, build)
            if not _wait_for_lock(descriptor, fcntl.LOCK_SH, entry):
                return False
        return True

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        partial = _partial(entry)
        try:
            with _clear_when_full(self.root):
                with _usable(self.root):
                    partial.mkdir()
                build(partial)
                partial.rename(entry)
                self._grown.add(entry.parent.name)
        except BaseException:
            _remove_tree(partial)
            raise

    def _sweep(self, kind: str) -> None:
        """Remove what dead builders left; a live one holds the lock of its entry."""
        for partial in (self.root / kind).glob("*.partial"):
            key = partial.name.split(".", 1)[0]
            descriptor = _open_lock(partial.with_name(key))
            try:
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    log.info("removing %s, left by a run that was killed", partial)
                    _remove_tree(partial)
            finally:
                os.close(descriptor)

    def _entries(self, kind: str) -> Iterator[Path]:
        folder = self.root / kind
        if folder.is_dir():
            for path in folder.iterdir():
                if _KEY.match(path.name) and path.is_dir():
                    yield path


def disk_usage(path: Path) -> int:
    """Bytes that a tree takes on the disk: holes in its files do not count."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue  # removed by another run meanwhile
    return total


def no_space(error: BaseException) -> bool:
    """Whether an error says, as a number or in a program's words, that a disk is full."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    words = [os.strerror(number) for number in _NO_SPACE]
    return isinstance(error, HostfaultError) and any(each in str(error) for each in words)


@contextmanager
def _clear_when_full(root: Path) -> Iterator[None]:
    """Turn "no space left" of any form into one :class:`SetupError` that says where."""
    try:
        yield
    except (OSError, HostfaultError) as error:
        if not no_space(error):
            raise
        raise SetupError(
            f"the disk that holds the cache {root} is full: free some space there, "
            f"or set HOSTFAULT_CACHE to a directory with 4 GiB to spare\n{error}"
        ) from error


@contextmanager
def _usable(root: Path) -> Iterator[None]:
    """Turn what the system says of a cache that cannot be written into a :class:`SetupError`.

    For what the cache itself does; a builder's errors are about something else.
    """
    try:
        yield
    except OSError as error:
        if no_space(error):
            raise
        raise SetupError(
            f"cannot use the cache {root}: {error}; set HOSTFAULT_CACHE to a directory that you "
            "may write to, or make this one yours (chown)"
        ) from error


def _by_last_use(entries: Iterable[Path]) -> list[Path]:
    """Those that are still there, least recently used first."""
    used = []
    for entry in entries:
        with suppress(FileNotFoundError):  # removed by another run meanwhile
            used.append((entry.stat().st_mtime, entry))
    return [entry for _, entry in sorted(used)]


def _feed(total: hashlib._Hash, *values: str | bytes) -> None:
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        total.update(f"{type(value).__name__} {len(data)}\n".encode())
        total.update(data)


def _tree_parts(path: Path) -> Iterator[tuple[str | bytes, ...]]:
    if not path.is_dir():
        yield ("file", _mode(path), _digest(path))
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(
            files + [each for each in folders if (Path(folder) / each).is_symlink()]
        ):
            member = Path(folder) / name
            place = str(member.relative_to(path))
            if member.is_symlink():
                yield ("link", place, str(member.readlink()))
            else:
                yield ("file", place, _mode(member), _digest(member))


def _mode(path: Path) -> str:
    return "x" if path.stat().st_mode & 0o100 else "-"


def _digest(path: Path) -> bytes:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _partial(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.{uuid.uuid4().hex[:8]}.partial")


def _lock_file(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.lock")


def _open_lock(entry: Path) -> int:
    return os.open(_lock_file(entry), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _is_current(descriptor: int, entry: Path) -> bool:
    """Whether an open lock file is still the entry's."""
    try:
        return os.path.samestat(os.fstat(descriptor), _lock_file(entry).stat())
    except FileNotFoundError:
        return False


@contextmanager
def _discarding(entry: Path) -> Iterator[None]:
    """One after the other: each looks whether the entry is still the one that it means."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(entry.with_name("discards.lock"), flags, 0o644)
    try:
        deadline = Deadline(DISCARD_PATIENCE, f"another run that discards something like {entry}")
        poll(deadline, lambda: _try_lock(descriptor, fcntl.LOCK_EX) or None)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(descriptor: int, kind: int, entry: Path) -> bool:
    """Whether the lock was got, and is still the entry's."""
    if not _try_lock(descriptor, kind):
        log.info("waiting for another run that works on %s", entry)
        deadline = Deadline(BUILD_PATIENCE, f"another run that works on {entry}")
        poll(deadline, lambda: _settled(descriptor, kind, entry) or None, interval=0.2)
    return _is_current(descriptor, entry)


def _settled(descriptor: int, kind: int, entry: Path) -> bool:
    return _try_lock(descriptor, kind) or not _is_current(descriptor, entry)


def _remove(entry: Path) -> None:
    """Make an entry vanish at once, then remove its files."""
    grave = _partial(entry)
    try:
        entry.rename(grave)
    except FileNotFoundError:
        return
    _remove_tree(grave)


def _remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
