"""What a guest has written into a log or a console is cut, and its end is there all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostfault.agent.cap import TAIL, Cap, cut
from hostfault.agent.server import AgentServer
from hostfault.backing.base import MEMFD
from hostfault.guest.boot import GuestSpec, command
from hostfault.plumbing.deadline import Deadline, poll

LIMIT = 1 << 20


def test_the_beginning_and_the_end_of_a_long_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "guest-console.log"
    path.write_bytes(b"beginning" + b"x" * (3 * LIMIT) + b"the last words")
    assert cut(path, LIMIT)
    data = path.read_bytes()
    assert len(data) < LIMIT
    assert data.startswith(b"beginning")
    assert data.endswith(b"x" * (TAIL - 14) + b"the last words")
    lost = 3 * LIMIT + 23 - LIMIT // 2 - TAIL
    assert b"[hostfault: %d bytes were cut here]" % lost in data
    assert not cut(path, LIMIT)


def test_a_short_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * LIMIT)
    assert not cut(path, LIMIT)
    assert path.stat().st_size == LIMIT


def test_no_link_and_no_fifo_is_cut(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(2 * LIMIT))
    (tmp_path / "link.log").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo.log")
    assert not cut(tmp_path / "link.log", LIMIT)
    assert not cut(tmp_path / "fifo.log", LIMIT)
    assert not cut(tmp_path / "none.log", LIMIT)
    assert (tmp_path / "secret").stat().st_size == 2 * LIMIT


def test_a_writer_goes_on_at_the_new_end(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(bytes(2 * LIMIT))
        cap = Cap(tmp_path, LIMIT, interval=0.01)
        poll(Deadline(10.0, "the cut"), lambda: path.stat().st_size < LIMIT or None)
        writer.write(b"and on")
        cap.close()
    assert path.read_bytes().endswith(b"here]\n" + bytes(TAIL) + b"and on")
    assert path.stat().st_blocks * 512 <= LIMIT


def test_a_child_s_log_is_open_for_appending(tmp_path: Path) -> None:
    agent = AgentServer(tmp_path / "run")
    try:
        pid = agent.spawn("child", ["sleep", "60"], dict(os.environ))
        info = Path(f"/proc/{pid}/fdinfo/1").read_text()
        flags = int(info.split("flags:")[1].split()[0], 8)
        assert flags & os.O_APPEND
    finally:
        agent.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_guest_s_console_is_written_at_its_end() -> None:
    spec = GuestSpec(("qemu",), "k", "i", "/run/here", "q", "f", MEMFD, "")
    assert "file,id=serial,path=/run/here/guest-console.log,append=on" in command(spec, 1)
