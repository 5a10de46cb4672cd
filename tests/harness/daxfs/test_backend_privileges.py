"""A daemon that is root and may do less than that, and a guest that would take all there is."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daxfs_guest import Guest

NAMESPACE = ["unshare", "--user", "--map-root-user"]
WITHOUT_CHOWN = ["setpriv", "--inh-caps", "-chown", "--bounding-set", "-chown"]

MOUNT = 'mount -t tmpfs -o size=8m,nr_inodes=100 tmpfs "$1" && shift && exec "$@"'


def until_error(text: str, attempt: Callable[[int], object]) -> int:
    """How often something works until it fails as it should."""
    for number in range(200):
        try:
            attempt(number)
        except OSError as error:
            if text not in str(error):
                raise
            return number
    raise AssertionError("it always works")


@pytest.fixture(params=["a user namespace", "no CAP_CHOWN"])
def launcher(request: pytest.FixtureRequest) -> list[str]:
    """Makes the daemon a root that can't give files away."""
    if request.param == "no CAP_CHOWN" and os.geteuid() != 0:
        pytest.skip("only root can be root without CAP_CHOWN")
    line = NAMESPACE if request.param == "a user namespace" else WITHOUT_CHOWN
    if subprocess.run([*line, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{line[0]} is not allowed here")
    return line


def test_a_file_that_can_not_be_given_away_is_made_all_the_same(guest: Guest, shared: Path) -> None:
    node, handle = guest.create(b"file", uid=4711, gid=4712)
    guest.write(node, handle, b"x")
    guest.mkdir(b"directory", uid=4711, gid=4712)
    guest.mknod(b"node", stat.S_IFREG | 0o644)
    guest.symlink(b"link", b"target")
    assert sorted(path.name for path in shared.iterdir()) == ["directory", "file", "link", "node"]
    assert (shared / "file").stat().st_uid == os.geteuid()


class TestLimits:
    """Of a daemon that may open few files."""

    @pytest.fixture
    def launcher(self) -> list[str]:
        return ["prlimit", "--nofile=200:200"]

    def test_what_can_not_be_answered_is_not_made(self, guest: Guest, shared: Path) -> None:
        made = until_error(
            "Too many open files in system", lambda number: guest.create(str(number).encode())
        )
        assert len(list(shared.iterdir())) == made
        for attempt in (
            lambda: [guest.mkdir(f"d{number}".encode()) for number in range(200)],
            lambda: [guest.symlink(f"l{number}".encode(), b"x") for number in range(200)],
            lambda: [guest.mknod(f"n{number}".encode(), stat.S_IFIFO) for number in range(200)],
        ):
            before = len(list(shared.iterdir()))
            with pytest.raises(OSError, match="Too many open files in system"):
                attempt()
            made += len(list(shared.iterdir())) - before
        assert made < 100

    def test_one_unknown_node_keeps_no_other_one_alive(self, guest: Guest, shared: Path) -> None:
        nodes = []
        for number in range(20):
            (shared / str(number)).touch()
            nodes.append(guest.lookup(str(number).encode()))
        before = guest.open_descriptors()
        guest.batch_forget(999, *nodes[:10], 999, *nodes[10:])
        assert guest.open_descriptors() == before - 20


class TestRoom:
    """Of a share that is a file system of 8 MiB of its own."""

    @pytest.fixture
    def launcher(self, shared: Path) -> list[str]:
        enter = [*NAMESPACE, "--mount", "sh", "-c", MOUNT, "sh", str(shared)]
        if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("nothing can be mounted here")
        return enter

    @pytest.fixture
    def options(self, request: pytest.FixtureRequest) -> list[str]:
        return [] if "every" in request.node.name else ["--keep-free", str(1 << 30)]

    def fill(self, guest: Guest, node: int, handle: int) -> int:
        """Write until there is no room; returns how many bytes there were."""
        data = b"x" * 65536
        return len(data) * until_error(
            "No space left", lambda number: guest.write(node, handle, data, number * len(data))
        )

    def test_a_guest_does_not_fill_the_last_part_of_a_file_system(self, guest: Guest) -> None:
        node, handle = guest.create(b"file")
        guest.fallocate(node, handle, 0, 1 << 20)
        with pytest.raises(OSError, match="No space left"):
            guest.fallocate(node, handle, 0, 8 << 20)
        size = self.fill(guest, node, handle)
        assert 7 << 20 < size <= (8 << 20) * 15 // 16
        assert guest.read(node, handle, 0, 4) == b"xxxx"
        for attempt in (
            lambda: guest.mkdir(b"directory"),
            lambda: guest.symlink(b"link", b"x"),
            lambda: guest.create(b"another"),
            lambda: guest.link(node, b"another"),
            lambda: guest.map(node, writable=True),
        ):
            guest.write(node, handle, b"y")  # in place of what was there
            with pytest.raises(OSError, match="No space left"):
                attempt()
        guest.map(node)
        guest.truncate(node, 0)
        guest.mkdir(b"directory")

    def test_a_guest_does_not_take_the_last_inodes(self, guest: Guest) -> None:
        made = until_error(
            "No space left", lambda number: guest.mknod(str(number).encode(), stat.S_IFIFO)
        )
        assert 80 < made < 100

    def test_every_byte_may_be_taken_if_none_is_kept(self, guest: Guest) -> None:
        node, handle = guest.create(b"file")
        assert self.fill(guest, node, handle) > (8 << 20) * 15 // 16
        guest.map(node, writable=True)
