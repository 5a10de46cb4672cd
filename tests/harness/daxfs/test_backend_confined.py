"""What the daemon gives up before it serves a guest."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from daxfs_guest import Guest

import hostfault

OTHER = 61234  # a user that nobody is
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

# Confined to the directory of its first argument, it tries what follows, and says what came of it.
ATTEMPTS = """
import os, pathlib, socket, sys
from hostfault.daxfs import confine
share, secret = map(pathlib.Path, sys.argv[1:])
print(confine.stay_in(os.open(share, os.O_PATH | os.O_DIRECTORY)))
def tcp():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
for attempt in (
    lambda: (share / "made").write_text("x"),
    lambda: (share / "made").rename(share / "below" / "made"),
    lambda: os.mkfifo(share / "fifo"),
    lambda: secret.read_text(),
    lambda: secret.write_text("x"),
    lambda: secret.unlink(),
    lambda: (secret.parent / "made").write_text("x"),
    lambda: (share / "below" / "made").rename(secret.parent / "made"),
    lambda: os.listdir("/"),
    lambda: pathlib.Path("/proc/1/environ").read_bytes(),
    tcp,
):
    try:
        attempt()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


def run(code: str, *arguments: object) -> list[str]:
    env = {"PYTHONPATH": str(Path(hostfault.__file__).parents[1])}
    argv = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_works_in_its_share_and_reaches_nothing_outside(shared: Path) -> None:
    secret = shared.parent / "secret"
    (shared / "below").mkdir()
    abi, *came_of_it = run(ATTEMPTS, shared, secret)
    if abi == "0":
        pytest.skip("this kernel has no Landlock that would do")
    assert came_of_it[:3] == ["done"] * 3
    assert "done" not in came_of_it[3:10]
    assert int(abi) < 4 or came_of_it[10] == "PermissionError"
    assert secret.read_text() == "secret"
    assert sorted(each.name for each in shared.parent.iterdir()) == ["secret", "shared"]


@ROOT_ONLY
def test_who_it_becomes_has_no_capability_no_group_and_no_way_back() -> None:
    code = """
import os
from hostfault.daxfs import confine
confine.become(61234, 61235)
print(os.getresuid(), os.getresgid(), os.getgroups())
for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapPrm")):
        print(int(line.split()[1], 16))
try:
    os.setuid(0)
except OSError as error:
    print(type(error).__name__)
"""
    assert run(code) == [
        "(61234, 61234, 61234) (61235, 61235, 61235) []",
        "0",
        "0",
        "PermissionError",
    ]


@ROOT_ONLY
class TestAsSomebodyElse:
    """A daemon that was started by root, in a directory that only root can enter."""

    @pytest.fixture
    def options(self, shared: Path, tmp_path: Path) -> list[str]:
        tmp_path.chmod(0o700)
        os.chown(shared, OTHER, OTHER)
        return ["--user", f"{OTHER}:{OTHER}"]

    def test_it_serves_and_says_who_it_is(self, guest: Guest, shared: Path) -> None:
        node, handle = guest.create(b"file")
        guest.write(node, handle, b"x")
        guest.mkdir(b"directory")
        guest.mknod(b"node", stat.S_IFREG | 0o644)
        made = {path.name: path.stat().st_uid for path in shared.iterdir()}
        assert made == {"file": OTHER, "directory": OTHER, "node": OTHER}
        assert (shared / "file").read_bytes() == b"x"
        first = json.loads(guest.log.read_text().splitlines()[0])
        assert first["uid"] == OTHER
        status = Path(f"/proc/{guest.daemon.pid}/status").read_text()
        assert f"Uid:\t{OTHER}\t{OTHER}\t{OTHER}\t{OTHER}" in status
