"""Files and directories, as a guest sees them."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path

import pytest
from daxfs_guest import ROOT, Guest, attributes_of

from hostfault.daxfs.files import permitted

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_MTIME, FATTR_FH = 1, 2, 4, 8, 32, 64
FATTR_MTIME_NOW = 256
AS_ROOT = os.geteuid() == 0


def test_a_guest_that_asks_is_told_which_files_to_map(connected: Guest, shared: Path) -> None:
    connected.start()
    extension, inode_dax = 1 << 30, 1 << 1
    asked = struct.pack("<16I", 7, 38, 4096, extension, inode_dax | 1, *[0] * 11)
    flags, flags2 = struct.unpack_from("<12xI16xI", connected.fuse(26, 0, asked))
    assert (flags, flags2) == (extension, inode_dax)
    (shared / "file").write_bytes(b"x")
    (shared / "directory").mkdir()
    told = {name: connected.dax(connected.lookup(name)) for name in (b"file", b"directory")}
    assert told == {b"file": True, b"directory": False}


def test_a_guest_without_a_second_word_of_flags_gets_none(connected: Guest) -> None:
    connected.start()
    reply = connected.fuse(26, 0, struct.pack("<4I", 7, 31, 4096, (1 << 30) - 1))
    flags, flags2 = struct.unpack_from("<12xI16xI", reply)
    assert (flags & 1 << 30, flags2) == (0, 0)


def test_init_offers_mappings_of_whole_pages(connected: Guest) -> None:
    connected.start()
    reply = connected.init()
    major, minor, _, flags, _, _, max_write, _, pages, alignment, flags2 = struct.unpack_from(
        "<4IHHIIHHI", reply
    )
    assert len(reply) == 64
    assert (major, minor, alignment, flags2) == (7, 38, 12, 0)
    assert flags & 1 << 26
    assert max_write == pages * 4096


def test_a_newer_major_version_is_answered_with_ours_and_may_ask_again(connected: Guest) -> None:
    connected.start()
    assert struct.unpack_from("<II", connected.init(major=8, minor=0)) == (7, 38)
    with pytest.raises(OSError, match="Invalid argument"):
        connected.getattr()
    connected.init()
    assert stat.S_ISDIR(connected.getattr().mode)


def test_a_version_without_mappings_is_refused(connected: Guest) -> None:
    connected.start()
    with pytest.raises(OSError, match=os.strerror(errno.EPROTO)):
        connected.init(minor=30)


def test_what_the_host_wrote_is_read(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(b"0123456789")
    node = guest.lookup(b"file")
    handle = guest.open(node)
    assert guest.read(node, handle, 2, 5) == b"23456"
    assert guest.read(node, handle, 8, 100) == b"89"
    assert guest.read(node, handle, 100, 1) == b""


def test_what_the_guest_writes_is_on_the_host(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"new")
    assert guest.write(node, handle, b"hello", 3) == 5
    guest.flush(node, handle)
    guest.fsync(node, handle)
    guest.fsync(node, handle, flags=1)
    assert (shared / "new").read_bytes() == b"\0\0\0hello"
    assert guest.getattr(node).size == 8


def test_the_host_s_file_system_is_not_synced_for_a_guest(guest: Guest) -> None:
    with pytest.raises(OSError, match="Function not implemented"):
        guest.syncfs()


def test_a_write_larger_than_agreed_is_refused(guest: Guest) -> None:
    node, handle = guest.create(b"new")
    with pytest.raises(OSError, match="Invalid argument"):
        guest.write(node, handle, bytes(256 * 1024 + 1))


def test_a_file_that_the_host_truncates_reads_as_short(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(b"x" * 8192)
    node = guest.lookup(b"file")
    handle = guest.open(node)
    os.truncate(shared / "file", 4097)
    assert guest.read(node, handle, 4096, 4096) == b"x"
    os.truncate(shared / "file", 0)
    assert guest.read(node, handle, 0, 4096) == b""
    assert guest.getattr(node).size == 0


def test_a_new_file_belongs_to_the_guest_s_user(guest: Guest, shared: Path) -> None:
    guest.create(b"file", uid=1234, gid=567)
    guest.mkdir(b"directory", uid=1234, gid=567)
    for name in ("file", "directory"):
        st = (shared / name).stat()
        expected = (1234, 567) if AS_ROOT else (os.geteuid(), os.getegid())
        assert (st.st_uid, st.st_gid) == expected
    assert stat.S_IMODE((shared / "file").stat().st_mode) == 0o640


def test_a_group_directory_passes_its_group_on(guest: Guest, shared: Path) -> None:
    (shared / "group").mkdir()
    (shared / "group").chmod(0o2775)
    guest.create(b"file", guest.lookup(b"group"), uid=1234, gid=567)
    assert (shared / "group" / "file").stat().st_gid == (shared / "group").stat().st_gid


def test_create_opens_what_exists_unless_it_must_be_new(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(b"there")
    node, handle = guest.create(b"file")
    assert guest.read(node, handle) == b"there"
    with pytest.raises(FileExistsError):
        guest.create(b"file", flags=os.O_RDWR | os.O_EXCL)


def test_attributes_can_be_set(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    assert stat.S_IMODE(guest.setattr(node, FATTR_MODE, mode=0o4600).mode) == 0o4600
    assert guest.truncate(node, 5000).size == 5000
    (shared / "file").chmod(0o400)
    assert guest.setattr(node, FATTR_SIZE | FATTR_FH, size=3, handle=handle).size == 3
    old = guest.setattr(node, FATTR_MTIME, mtime=1_000_000_000, mtime_ns=5)
    assert old.mtime == 1_000_000_000
    assert (shared / "file").stat().st_mtime_ns == 1_000_000_000 * 10**9 + 5
    assert guest.setattr(node, FATTR_MTIME | FATTR_MTIME_NOW).mtime > 1_700_000_000
    with pytest.raises(OSError, match="Invalid argument"):
        guest.setattr(node, FATTR_MTIME, mtime_ns=10**9)
    with pytest.raises(OSError, match="Invalid argument"):
        guest.truncate(node, 1 << 63)
    if AS_ROOT:
        assert guest.setattr(node, FATTR_UID, uid=77).uid == 77
        assert guest.setattr(node, FATTR_GID, gid=78).gid == 78


def test_times_before_1970_survive(guest: Guest, shared: Path) -> None:
    (shared / "old").touch()
    os.utime(shared / "old", ns=(0, -1_500_000_000))
    reply = guest.fuse(1, ROOT, b"old\0")
    seconds, nanoseconds = struct.unpack_from("<q", reply, 40 + 32)[0], reply[40 + 52 : 40 + 56]
    assert (seconds, struct.unpack("<I", nanoseconds)[0]) == (-2, 500_000_000)


def test_directories_are_made_and_removed(guest: Guest, shared: Path) -> None:
    directory = guest.mkdir(b"d", mode=0o700)
    guest.create(b"inside", directory)
    with pytest.raises(OSError, match="not empty"):
        guest.rmdir(b"d")
    guest.unlink(b"inside", directory)
    guest.rmdir(b"d")
    assert list(shared.iterdir()) == []


def test_names_can_be_linked_and_renamed(guest: Guest, shared: Path) -> None:
    node, _ = guest.create(b"one")
    directory = guest.mkdir(b"d")
    assert guest.link(node, b"two", directory) == node
    assert guest.getattr(node).links == 2
    guest.rename(b"one", b"three", to=directory)
    assert sorted(path.name for path in (shared / "d").iterdir()) == ["three", "two"]
    assert guest.lookup(b"three", directory) == node
    with pytest.raises(FileNotFoundError):
        guest.lookup(b"one")


def test_a_rename_can_refuse_to_replace_and_can_exchange(guest: Guest, shared: Path) -> None:
    (shared / "a").write_text("A")
    (shared / "b").write_text("B")
    with pytest.raises(FileExistsError):
        guest.rename2(b"a", b"b", 1)
    guest.rename2(b"a", b"b", 2)
    assert ((shared / "a").read_text(), (shared / "b").read_text()) == ("B", "A")
    with pytest.raises(OSError, match="Invalid argument"):
        guest.rename2(b"a", b"b", 4)


def test_a_symbolic_link_is_text(guest: Guest) -> None:
    link = guest.symlink(b"link", b"../anywhere")
    assert guest.readlink(link) == b"../anywhere"
    assert stat.S_ISLNK(guest.getattr(link).mode)
    assert guest.link(link, b"same") == link
    with pytest.raises(OSError, match="Invalid argument"):
        guest.symlink(b"empty", b"")


@pytest.mark.parametrize("plus", [False, True])
def test_a_directory_is_read_in_pieces(guest: Guest, shared: Path, plus: bool) -> None:
    names = {f"file-{number:03}".encode() for number in range(100)}
    for name in names:
        (shared / name.decode()).touch()
    handle = guest.opendir()
    found: list[tuple[bytes, int, int]] = []
    while part := guest.readdir(ROOT, handle, found[-1][1] if found else 0, 600, plus=plus):
        found += part
    assert {name for name, _, _ in found} == names | {b".", b".."}
    assert len(found) == 102
    again = guest.readdir(ROOT, handle, found[49][1], 600, plus=plus)
    assert again[0][0] == found[50][0]
    if plus:
        nodes = {name: node for name, _, node in found}
        assert nodes[b"."] == nodes[b".."] == 0
        assert guest.lookup(b"file-007") == nodes[b"file-007"]
    guest.fsync(ROOT, handle, opcode=30)
    guest.releasedir(ROOT, handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        guest.readdir(ROOT, handle)


def test_space_is_allocated_punched_and_found(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file")
    guest.fallocate(node, handle, 0, 16384)
    assert guest.getattr(node).size == 16384
    guest.write(node, handle, b"x" * 16384)
    guest.fallocate(node, handle, 4096, 4096, mode=3)  # keep size, punch a hole
    assert guest.read(node, handle, 4095, 3) == b"x\0\0"
    assert guest.lseek(node, handle, 0, os.SEEK_HOLE) == 4096
    assert guest.lseek(node, handle, 4096, os.SEEK_DATA) == 8192
    for nowhere in (16384, (1 << 64) - 1):  # the end, and a task's offset of -1
        with pytest.raises(OSError, match="No such device or address"):
            guest.lseek(node, handle, nowhere, os.SEEK_DATA)
    with pytest.raises(OSError, match="not supported"):
        guest.fallocate(node, handle, 0, 4096, mode=8)  # collapse range


def test_the_file_system_s_size_is_the_host_s(guest: Guest, shared: Path) -> None:
    blocks, _, _, files, _, size, name_length, fragment, _ = guest.statfs()
    host = os.statvfs(shared)
    assert (blocks, files, size, name_length, fragment) == (
        host.f_blocks,
        host.f_files,
        host.f_bsize,
        host.f_namemax,
        host.f_frsize,
    )


@pytest.mark.parametrize(
    ("uid", "gid", "mask", "allowed"),
    [
        (1000, 1000, 6, True),
        (1000, 1000, 1, False),
        (1001, 1000, 4, True),
        (1001, 1000, 2, False),
        (1001, 1001, 4, False),
        (0, 0, 6, True),
        (0, 0, 1, False),
    ],
)
def test_access_follows_the_mode(uid: int, gid: int, mask: int, allowed: bool) -> None:
    st = os.stat_result((stat.S_IFREG | 0o640, 1, 1, 1, 1000, 1000, 0, 0, 0, 0))
    assert permitted(st, uid, gid, mask) is allowed


def test_access_is_answered(guest: Guest, shared: Path) -> None:
    (shared / "file").touch(0o600)
    node = guest.lookup(b"file")
    st = (shared / "file").stat()
    guest.access(node, 6, st.st_uid, st.st_gid)
    with pytest.raises(PermissionError):
        guest.access(node, 4, st.st_uid + 1, st.st_gid + 1)


def test_what_is_not_served_is_said_to_be_missing(guest: Guest) -> None:
    extended_attributes = (21, 22, 23, 24)
    for opcode in (*extended_attributes, 39, 47, 4096):
        with pytest.raises(OSError, match="not implemented"):
            guest.fuse(opcode, ROOT, bytes(64))


def test_attributes_come_with_every_entry(guest: Guest, shared: Path) -> None:
    (shared / "file").write_bytes(b"12345")
    found = attributes_of(guest.fuse(1, ROOT, b"file\0"), 40)
    st = (shared / "file").stat()
    assert (found.inode, found.size, found.mode) == (st.st_ino, 5, st.st_mode)
