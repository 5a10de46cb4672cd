"""File systems of the agent's own: mounted, filled to the last page, and what a path lies on.

Only what was mounted here is ever filled: the machine may be shared with others.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from contextlib import suppress
from pathlib import Path

from hostfault.agent.loopdisk import LoopDisk, SwapDisk

MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 0x4000, 1 << 18  # mount(2)
CLONE_NEWNS = 0x20000  # unshare(2)

_LIBC = ctypes.CDLL(None, use_errno=True)


POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")  # Documentation/ABI/testing


class HugePages:
    """The machine's pool of huge pages, of 2 MiB."""

    def __init__(self) -> None:
        self._taken = 0

    def hold(self, pages: int) -> None:
        """Let the pool have so many. Raises OSError if the machine has not got them."""
        (POOL / "nr_hugepages").write_text(str(pages))
        if (found := self._read("nr_hugepages")) != pages:
            raise OSError(errno.ENOMEM, f"the pool has {found} huge pages, not {pages}")

    def drain(self) -> int:
        """Take the free ones from it; returns how many are still free."""
        all_pages, free = self._read("nr_hugepages"), self._read("free_hugepages")
        (POOL / "nr_hugepages").write_text(str(all_pages - free))
        self._taken = all_pages - self._read("nr_hugepages")
        return self._read("free_hugepages")

    def refill(self) -> None:
        """Undo :meth:`drain`. Raises OSError."""
        self.hold(self._read("nr_hugepages") + self._taken)
        self._taken = 0

    def _read(self, name: str) -> int:
        return int((POOL / name).read_text())


class OwnFileSystems:
    """Tmpfs instances by the directory that they are mounted at, and one hugetlbfs."""

    def __init__(self) -> None:
        self.pool = HugePages()
        self._disks: dict[Path, LoopDisk] = {}
        self._cgroups: set[Path] = set()
        self._fillers: dict[Path, int] = {}  # what fills it; -1: nothing does
        self._mounted: set[Path] = set()

    def mount(self, directory: Path, size: int, *, huge: bool = False) -> bool:
        """Mount a tmpfs of ``size`` bytes; returns whether this process may.

        ``huge``: it takes transparent huge pages. Raises OSError: EINVAL for a kernel without.
        """
        options = f"size={size},mode=0755{',huge=always' if huge else ''}"
        try:
            _mount(directory, b"tmpfs", options)
        except PermissionError:
            return False
        self._mounted.add(directory)
        return True

    def mount_huge_pages(self, directory: Path, pages: int) -> None:
        """Have a pool of so many pages, and mount a hugetlbfs, which is not to be filled."""
        self.pool.hold(pages)
        _mount(directory, b"hugetlbfs", "pagesize=2M,mode=0755")

    def mount_disk(self, directory: Path, size: int) -> bool:
        """Mount ext4 on a disk of ``size`` bytes; False if there are no loop devices. OSError."""
        try:
            disk = LoopDisk(directory.with_suffix(".disk"), size)
        except FileNotFoundError:
            return False
        self._disks[directory] = disk
        _mount(directory, b"ext4", "", disk.device)
        return True

    def swap_to(self, directory: Path, size: int) -> bool:
        """Swap to a disk of ``size`` bytes; False if there are no loop devices. Raises OSError."""
        try:
            disk = SwapDisk(directory.with_suffix(".disk"), size)
        except FileNotFoundError:
            return False
        self._disks[directory] = disk
        disk.use()
        return True

    def mount_cgroups(self, directory: Path) -> None:
        """Mount the machine's cgroups, once. Raises OSError: ENODEV for a kernel without."""
        if directory not in self._cgroups:
            _mount(directory, b"cgroup2", "")
            self._cgroups.add(directory)

    def disk(self, directory: Path) -> LoopDisk:
        """What :meth:`mount_disk` has mounted there. Raises PermissionError."""
        if directory not in self._disks:
            raise PermissionError(f"{directory} is on no disk of the agent's own")
        return self._disks[directory]

    def has(self, path: Path) -> bool:
        """Whether a file is on one of them."""
        return any(path.is_relative_to(place) for place in self._mounted)

    def fill(self, path: Path) -> None:
        """Fill the file system of a file, so that not one page is left. Raises OSError."""
        place = self._of(path)
        if place in self._fillers:
            return
        filler = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._fillers[place] = filler
        end, step = 0, 1 << 30
        while step >= os.sysconf("SC_PAGESIZE"):
            try:
                os.posix_fallocate(filler, end, step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
            else:
                end += step

    def make_room(self, path: Path) -> None:
        """Take away what fills the file system of a file."""
        filler = self._fillers.pop(self._of(path), None)
        if filler is not None:
            os.close(filler)

    def close(self) -> None:
        """Unmount everything; what is in use goes when its last user does (umount2(2))."""
        for filler in self._fillers.values():
            os.close(filler)
        self._fillers.clear()
        for place in self._mounted:
            _LIBC.umount2(os.fsencode(place), 2)  # MNT_DETACH
        self._mounted.clear()
        for place in self._cgroups:
            _LIBC.umount2(os.fsencode(place), 2)
        self._cgroups.clear()
        for place, disk in self._disks.items():
            _LIBC.umount2(os.fsencode(place), 2)
            disk.close()
        self._disks.clear()

    def _of(self, path: Path) -> Path:
        for place in self._mounted:
            if path.is_relative_to(place):
                return place
        raise PermissionError(f"{path} is on no file system of the agent's own")


def leave_mount_namespace() -> None:
    """See to it that what is mounted from now on is seen, and outlived, by nobody else.

    Only root can; others cannot mount, either.
    """
    with suppress(PermissionError):
        if _LIBC.unshare(CLONE_NEWNS) != 0:
            raise PermissionError
        _LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)


def _mount(directory: Path, kind: bytes, options: str, device: str = "hostfault") -> None:
    """Mount a file system (mount(2)). Raises OSError."""
    flags = MS_NOSUID | MS_NODEV
    if _LIBC.mount(os.fsencode(device), os.fsencode(directory), kind, flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))


def write_at(fd: int, at: int, data: bytes) -> None:
    """Write whole pages; by mmap on hugetlbfs, which has no write(2). Raises OSError."""
    try:
        os.pwrite(fd, data, at)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        with mmap.mmap(fd, len(data), offset=at) as memory:
            memory[:] = data


def find_pages(fd: int, text: bytes, number: int) -> int:
    """Where a file has ``number`` pages in a row that are ``text``. Raises FileNotFoundError."""
    run = 0
    for at in range(0, os.fstat(fd).st_size, len(text)):
        run = run + 1 if os.pread(fd, len(text), at) == text else 0
        if run == number:
            return at - (number - 1) * len(text)
    raise FileNotFoundError(f"no {number} pages in a row hold {text[:16]!r}")


def punch_hole(fd: int, at: int, length: int) -> None:
    """Give the pages of a range back; they read as zeroes (fallocate(2)). Raises OSError."""
    keep_size_and_punch = 1 | 2
    offset, size = ctypes.c_longlong(at), ctypes.c_longlong(length)
    if _LIBC.fallocate(fd, keep_size_and_punch, offset, size) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def soft_offline(fd: int, at: int) -> tuple[int, int]:
    """Have the kernel move a page of a file to another frame (madvise(2), MADV_SOFT_OFFLINE).

    Needs CAP_SYS_ADMIN; the machine does not use the old frame again. Returns the frame before and
    after. Raises OSError.
    """
    madv_soft_offline = 101
    size = os.sysconf("SC_PAGESIZE")
    with mmap.mmap(fd, size, offset=at) as page:
        before = _frame_of(page)
        page.madvise(madv_soft_offline)
        return before, _frame_of(page)


def _frame_of(page: mmap.mmap) -> int:
    """In which frame of the machine a mapped page is (pagemap.rst); 0: we may not know. OSError."""
    page[0]  # so that it is mapped
    view = ctypes.c_char.from_buffer(page)
    number = ctypes.addressof(view) // os.sysconf("SC_PAGESIZE")
    del view  # a mapping that is looked at can't be closed
    with Path("/proc/self/pagemap").open("rb", buffering=0) as stream:
        entry = os.pread(stream.fileno(), 8, number * 8)
    return int.from_bytes(entry, "little") & ((1 << 55) - 1)


def poison(fd: int, at: int) -> None:
    """Mark the page of a file at an offset as broken hardware (madvise(2), MADV_HWPOISON).

    Needs CAP_SYS_ADMIN; the machine does not use that page again. Raises OSError. A child does
    it, for the kernel sends SIGBUS to all that have the page mapped, as whoever poisons it must.
    """
    child = os.fork()
    if child == 0:
        os._exit(_poison_mapped(fd, at))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGBUS):
        raise OSError(code, os.strerror(code) if code > 0 else f"ended by signal {-code}")


def _poison_mapped(fd: int, at: int) -> int:
    """Map the page and poison it; returns 0 or an errno."""
    madv_hwpoison = 100
    try:
        page = mmap.mmap(fd, os.sysconf("SC_PAGESIZE"), offset=at)
        page.madvise(madv_hwpoison)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def type_of(fd: int) -> str:
    """The file system type of an open file ("tmpfs", ...), from /proc/self/mountinfo (proc(5))."""
    device = os.fstat(fd).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"
