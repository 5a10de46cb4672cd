"""Nothing that a guest asks for reaches out of the shared directory, or into a device."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from daxfs_guest import ROOT, Guest

BAD_NAMES = [b"", b".", b"..", b"../secret", b"a/b", b"/etc", b"/", b"./file"]
BY_NAME: dict[str, Callable[[Guest, bytes], object]] = {
    "lookup": lambda guest, name: guest.lookup(name),
    "create": lambda guest, name: guest.create(name),
    "mkdir": lambda guest, name: guest.mkdir(name),
    "mknod": lambda guest, name: guest.mknod(name, stat.S_IFREG | 0o600),
    "symlink": lambda guest, name: guest.symlink(name, b"target"),
    "link": lambda guest, name: guest.link(guest.lookup(b"file"), name),
    "unlink": lambda guest, name: guest.unlink(name),
    "rmdir": lambda guest, name: guest.rmdir(name),
    "rename from": lambda guest, name: guest.rename(name, b"new"),
    "rename to": lambda guest, name: guest.rename(b"file", name),
    "rename2 to": lambda guest, name: guest.rename2(b"file", name, 2),
}


def errno_of(attempt: Callable[[], object]) -> int:
    """The error that an attempt ends in, 0 for none."""
    try:
        attempt()
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_name_is_one_component(guest: Guest, shared: Path) -> None:
    (shared / "file").touch()
    for operation, attempt in BY_NAME.items():
        for name in BAD_NAMES:
            assert errno_of(partial(attempt, guest, name)) == errno.EINVAL, (operation, name)
    assert [path.name for path in shared.iterdir()] == ["file"]
    assert (shared.parent / "secret").read_bytes() == b"secret"


def test_a_name_too_long_is_refused(guest: Guest) -> None:
    with pytest.raises(OSError, match="name too long"):
        guest.lookup(b"x" * 256)


def test_a_name_without_its_end_or_with_another_is_refused(guest: Guest) -> None:
    for body in (b"", b"name", b"two\0names\0", b"\0\0"):
        with pytest.raises(OSError, match="Invalid argument"):
            guest.fuse(1, ROOT, body)
    assert guest.refusals().count("names") == 4


@pytest.mark.parametrize("target", ["/", "..", "../secret"])
def test_a_link_out_is_never_followed(guest: Guest, shared: Path, target: str) -> None:
    (shared / "link").symlink_to(target)
    link = guest.lookup(b"link")
    assert guest.readlink(link) == target.encode()
    for attempt in (
        lambda: guest.lookup(b"secret", link),
        lambda: guest.create(b"new", link),
        lambda: guest.opendir(link),
        lambda: guest.mkdir(b"new", link),
        lambda: guest.rename(b"link", b"moved", to=link),
    ):
        with pytest.raises(NotADirectoryError):
            attempt()
    for attempt in (lambda: guest.open(link), lambda: guest.map(link)):
        with pytest.raises(OSError, match="not supported"):
            attempt()
    with pytest.raises(OSError, match="not supported"):
        guest.truncate(link, 0)
    with pytest.raises(OSError, match=r"not supported|Invalid"):
        guest.setattr(link, 1, mode=0o777)
    assert (shared.parent / "secret").read_bytes() == b"secret"


def test_create_does_not_open_through_a_link(guest: Guest, shared: Path) -> None:
    (shared / "link").symlink_to("../secret")
    with pytest.raises(OSError, match="not supported"):
        guest.create(b"link")
    (shared / "dangling").symlink_to("../made")
    with pytest.raises(OSError, match="not supported"):
        guest.create(b"dangling")
    assert not (shared.parent / "made").exists()


def test_owner_and_times_of_a_link_are_its_own(guest: Guest, shared: Path) -> None:
    (shared / "link").symlink_to("../secret")
    before = (shared.parent / "secret").stat()
    guest.setattr(guest.lookup(b"link"), 32, mtime=5)
    assert (shared / "link").lstat().st_mtime == 5
    assert (shared.parent / "secret").stat().st_mtime_ns == before.st_mtime_ns


def test_a_directory_replaced_by_a_link_is_still_the_directory(guest: Guest, shared: Path) -> None:
    (shared / "d").mkdir()
    (shared / "d" / "secret").write_bytes(b"harmless")
    directory = guest.lookup(b"d")
    (shared / "d").rename(shared / "elsewhere")
    (shared / "d").symlink_to("..")
    node = guest.lookup(b"secret", directory)
    assert guest.read(node, guest.open(node)) == b"harmless"
    guest.create(b"new", directory)
    assert (shared / "elsewhere" / "new").exists()
    assert not (shared.parent / "new").exists()


def test_a_file_replaced_by_a_link_is_still_the_file(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(b"harmless")
    node = guest.lookup(b"file")
    (shared / "file").unlink()
    (shared / "file").symlink_to("../secret")
    assert guest.read(node, guest.open(node)) == b"harmless"
    assert guest.truncate(node, 0).size == 0
    assert (shared.parent / "secret").read_bytes() == b"secret"


def test_fifos_and_sockets_are_never_opened(guest: Guest, shared: Path) -> None:
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shared / "socket"))
    for name in (b"fifo", b"socket"):
        node = guest.lookup(name)
        with pytest.raises(OSError, match="not supported"):
            guest.open(node, os.O_RDONLY)
        with pytest.raises(OSError, match="not supported"):
            guest.create(name)
        with pytest.raises(OSError, match="not supported"):
            guest.truncate(node, 0)
        with pytest.raises(NotADirectoryError):
            guest.opendir(node)


def test_a_guest_makes_fifos_but_no_devices(guest: Guest, shared: Path) -> None:
    assert stat.S_ISFIFO(guest.getattr(guest.mknod(b"fifo", stat.S_IFIFO | 0o600)).mode)
    assert stat.S_ISREG(guest.getattr(guest.mknod(b"file", stat.S_IFREG | 0o600)).mode)
    for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, 0):
        with pytest.raises(PermissionError):
            guest.mknod(b"device", kind | 0o600)
    assert not (shared / "device").exists()


def test_the_parent_of_the_shared_directory_stays_unknown(guest: Guest, shared: Path) -> None:
    handle = guest.opendir()
    reply = guest.fuse(28, ROOT, struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0))
    assert struct.pack("<Q", shared.parent.stat().st_ino) not in reply


def test_random_requests_are_survived(guest: Guest, shared: Path) -> None:
    generator = random.Random(2020)  # the same requests each time
    (shared / "file").write_bytes(b"x" * 5000)
    node, handle = guest.lookup(b"file"), guest.open(guest.lookup(b"file"))
    numbers = [0, 1, node, handle, 4096, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    opcodes = [opcode for opcode in range(1, 60) if opcode not in (2, 26, 36, 38, 42)]
    answered = 0
    for _ in range(1500):
        fields = [generator.choice(numbers) for _ in range(generator.randrange(12))]
        body = struct.pack(f"<{len(fields)}Q", *fields) + generator.choice([b"", b"a\0", b"a\0b\0"])
        body = body[generator.randrange(min(len(body), 9)) if body else 0 :]
        opcode, about = generator.choice(opcodes), generator.choice([1, node, 99])
        answered += errno_of(partial(guest.fuse, opcode, about, body)) == 0
    assert answered > 20
    assert guest.events("bug") == []
    assert (shared.parent / "secret").read_bytes() == b"secret"
    assert sorted(path.name for path in shared.parent.iterdir()) == [
        "log",
        "s",
        "secret",
        "shared",
        "stderr",
    ]
    assert guest.getattr().inode == shared.stat().st_ino
