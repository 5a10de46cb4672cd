"""The agent on the host, as a real process of this machine, and the harness's side of it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hostfault.agent.server import OPERATIONS
from hostfault.case.model import Kernel
from hostfault.host.emulated import GuestQemu, prove_kernel, prove_qemu
from hostfault.host.local import local_agent
from hostfault.kernel.kvm_only import build_id
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, ProtocolError, SetupError
from hostfault.remote.agent import WORK, Agent


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def agent(directory: Path, tmp_path: Path) -> Iterator[Agent]:
    with local_agent(directory, tmp_path) as agent:
        yield agent


def test_no_module_of_the_callers_directory_is_imported_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, deed = tmp_path / "tree", tmp_path / "deed"
    tree.mkdir()
    for name in ("socket", "json", "argparse"):
        (tree / f"{name}.py").write_text(f"open({str(deed)!r}, 'w')\n")
    monkeypatch.chdir(tree)
    with local_agent(tmp_path / "run", tmp_path) as agent:
        agent.hello()
    assert not deed.exists()
    subprocess.run([sys.executable, "-c", "import json"], check=True)
    assert deed.exists(), "what is planted is imported where nothing keeps it out"


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_it_says_who_it_is(agent: Agent, directory: Path) -> None:
    assert agent.hello()["dir"] == str(directory)
    assert agent.hello()["release"] == os.uname().release


def test_it_says_which_program_a_child_runs_by_its_build_id(agent: Agent) -> None:
    agent.spawn("one", ["sleep", "60"], {"PATH": os.environ["PATH"]})
    program = Path(shutil.which("sleep") or "").resolve()
    poll(Deadline(5.0, "sleep"), lambda: agent.program_of("one", program.name) or None, 0.01)
    assert agent.program_of("one", program.name) == build_id(program)
    assert agent.program_of("one", "another-name") == ""


def test_it_says_which_program_a_loader_runs(agent: Agent) -> None:
    program = Path(shutil.which("sleep") or "").resolve()
    loader = "/lib64/ld-linux-x86-64.so.2"
    agent.spawn("one", [loader, str(program), "60"], {"PATH": os.environ["PATH"]})
    poll(Deadline(5.0, "sleep"), lambda: agent.program_of("one", program.name) or None, 0.01)
    assert agent.program_of("one", program.name) == build_id(program)


def test_a_file_is_made_page_by_page_and_cut(agent: Agent) -> None:
    agent.make_file("data", [1, 2, 3], 4096)
    assert [agent.byte("data", page * 4096) for page in range(3)] == [1, 2, 3]
    assert agent.truncate("data", 4096) == 4096
    assert agent.stat("data")["size"] == 4096
    assert agent.byte("data", 4096) is None


def test_what_a_guest_put_where_a_file_is_made_is_not_followed(
    agent: Agent, directory: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    agent.make_directory("shared")
    there = directory / "shared" / "data"
    for put in (
        lambda: there.symlink_to(outside),
        lambda: os.link(outside, there),
        lambda: os.mkfifo(there),
    ):
        put()
        agent.make_file("shared/data", [1], 4096)
        assert there.is_file()
        assert not there.is_symlink()
        assert agent.truncate("shared/data", 0) == 0
        assert outside.read_text() == "precious"
        there.unlink()


def test_a_link_put_in_the_place_of_a_file_that_was_made_changes_nothing(
    agent: Agent, directory: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    agent.make_file("data", [1, 2], 4096)
    made = directory / "data"
    inode = made.stat().st_ino
    made.rename(directory / "moved")
    made.symlink_to(outside)
    assert agent.stat("data")["ino"] == inode
    assert agent.byte("data", 4096) == 2
    assert agent.truncate("data", 5) == 5
    assert (directory / "moved").stat().st_size == 5
    assert outside.read_text() == "precious"


def test_no_file_is_made_through_a_link_to_a_directory(
    agent: Agent, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (directory / "link").symlink_to(tmp_path / "outside")
    for path in ("link/data", "../outside/data", str(tmp_path / "outside" / "data")):
        with pytest.raises(HostfaultError, match="make_file failed"):
            agent.make_file(path, [1], 4096)
    assert list((tmp_path / "outside").iterdir()) == []


def test_only_a_file_that_was_made_is_cut(agent: Agent, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    with pytest.raises(HostfaultError, match="no file was made at"):
        agent.truncate(str(outside), 0)
    assert outside.read_text() == "precious"


def test_a_log_is_read_on_from_where_it_was_left(agent: Agent, directory: Path) -> None:
    (directory / "log").write_text("first\n")
    text, position = agent.read("log")
    assert text == "first\n"
    (directory / "log").write_text("first\nsecond\n")
    assert agent.read("log", position)[0] == "second\n"
    assert agent.read("log", offset=-4)[0] == "ond\n"


def test_the_code_of_a_child_that_ended_is_told(agent: Agent) -> None:
    agent.spawn("child", ["sh", "-c", "echo last words; exit 7"], {})
    assert poll(Deadline(10.0, "the child to end"), lambda: agent.ended("child")) == 7
    assert agent.read("child.log")[0] == "last words\n"


def test_a_child_that_is_killed_has_the_signal_as_its_code(agent: Agent) -> None:
    agent.spawn("child", ["sleep", "1000"], {})
    assert agent.ended("child") is None
    assert agent.kill("child") == -9
    assert agent.ended("child") == -9


def test_a_child_is_handed_a_socket_that_listens(agent: Agent, directory: Path) -> None:
    program = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).accept()[0].send(b'hi')"
    path = str(directory / "socket")
    agent.spawn("server", ["python3", "-c", program, "{fd}"], {}, listen=path)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10.0)
        client.connect(path)
        assert client.recv(2) == b"hi"


def test_what_fails_there_is_told_here(agent: Agent) -> None:
    with pytest.raises(HostfaultError, match=r"read failed on the host: FileNotFoundError"):
        agent.read("nothing")
    assert agent.hello()


def test_nothing_is_left_when_the_harness_goes(directory: Path, tmp_path: Path) -> None:
    with local_agent(directory, tmp_path) as agent:
        pid = agent.spawn("child", ["sleep", "1000"], {})
        assert runs(pid)
    assert not runs(pid)
    assert not directory.exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_of_a_harness_that_is_killed(
    directory: Path, tmp_path: Path, number: signal.Signals
) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom hostfault.host.local import local_agent\n"
        f"with local_agent(Path({str(directory)!r}), Path({str(tmp_path)!r})) as agent:\n"
        "    print(agent.spawn('child', ['sleep', '1000'], {}), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with harness:
        assert harness.stdout is not None
        pid = int(harness.stdout.readline())
        harness.send_signal(number)
    poll(
        Deadline(10.0, "the agent to remove its directory"), lambda: not directory.exists() or None
    )
    assert not runs(pid)


def test_an_agent_that_is_asked_to_end_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-m", "hostfault.agent", "--directory", str(directory)]
    fd = theirs.fileno()
    with ours, subprocess.Popen([*argv, "--stdio", str(fd)], pass_fds=(fd,)) as child:
        theirs.close()
        pid = Agent(ours).spawn("child", ["sleep", "1000"], {})
        for _ in range(3):  # once more while it is closing, too
            child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    assert not directory.exists()
    assert not runs(pid)


def test_a_share_of_any_depth_is_removed(directory: Path, tmp_path: Path) -> None:
    with local_agent(directory, tmp_path):
        place = os.open(directory, os.O_PATH)
        for _ in range(2 * sys.getrecursionlimit()):
            os.mkdir("d", dir_fd=place)
            deeper = os.open("d", os.O_PATH, dir_fd=place)
            os.close(place)
            place = deeper
        os.close(place)
    assert not directory.exists()


def peer(answers: Callable[[dict[str, object]], bytes]) -> socket.socket:
    """A scripted agent: one answer for each request."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as stream:
            for line in stream:
                theirs.sendall(answers(json.loads(line)))

    threading.Thread(target=serve, daemon=True).start()
    return ours


def test_a_silent_agent_is_a_lost_connection() -> None:
    with peer(lambda _: b"") as stream, pytest.raises(ConnectionLostError, match="hello"):
        Agent(stream, timeout=0.5).hello()


def test_what_takes_work_may_take_longer_than_a_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        late = threading.Timer(0.6, lambda: theirs.sendall(b'{"id": 1, "ok": null}\n'))
        late.start()
        Agent(ours, timeout=0.3).fill("data")
        late.join()


def test_every_operation_that_takes_work_is_one_of_the_agents() -> None:
    assert set(WORK) <= OPERATIONS


def test_an_answer_that_never_ends_is_a_lost_connection() -> None:
    ours, theirs = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            while not over.wait(0.05):
                theirs.sendall(b".")

    threading.Thread(target=drip, daemon=True).start()
    with ours, theirs, pytest.raises(ConnectionLostError, match="to answer hello"):
        Agent(ours, timeout=0.5).hello()
    over.set()


@pytest.mark.parametrize("line", [b"[]\n", b"{\n", b"7\n"])
def test_an_answer_that_is_none_is_an_error(line: bytes) -> None:
    with peer(lambda _: line) as stream, pytest.raises(ProtocolError, match="to hello is no reply"):
        Agent(stream).hello()


def test_the_wait_ends_at_once_when_the_host_is_known_to_be_dead() -> None:
    def dead() -> None:
        raise ConnectionLostError("the emulated host is dead")

    with peer(lambda _: b"") as stream, pytest.raises(ConnectionLostError, match="host is dead"):
        Agent(stream, dead, timeout=60.0).hello()


def test_a_late_answer_is_not_taken_for_that_of_the_next_question() -> None:
    def answers(request: dict[str, object]) -> bytes:
        stale = json.dumps({"id": 0, "ok": "stale"}).encode() + b"\n"
        return stale + json.dumps({"id": request["id"], "ok": "fresh"}).encode() + b"\n"

    with peer(answers) as stream:
        assert Agent(stream).kernel_log() == "fresh"


def test_the_kernel_that_runs_must_be_the_one_that_was_asked_for() -> None:
    def answers(request: dict[str, object]) -> bytes:
        running = {"release": "7.3.4", "kvm_build_id": "abcd"}
        return json.dumps({"id": request["id"], "ok": running}).encode() + b"\n"

    def kernel(release: str, build_id: str) -> Kernel:
        return Kernel("x", release, Path(), Path(), packaged=False, build_id=build_id)

    with peer(answers) as stream:
        agent = Agent(stream)
        prove_kernel(agent, kernel("7.3.4", "abcd"))
        prove_kernel(agent, kernel("7.3.4", ""))
        with pytest.raises(SetupError, match=r"release is 7\.3\.4, not 6\.1"):
            prove_kernel(agent, kernel("6.1", ""))
        with pytest.raises(SetupError, match=r"build id of kvm.ko is abcd, not beef"):
            prove_kernel(agent, kernel("7.3.4", "beef"))


def test_the_guests_qemu_must_be_the_one_that_was_built() -> None:
    def answers(request: dict[str, object]) -> bytes:
        return json.dumps({"id": request["id"], "ok": "abcd"}).encode() + b"\n"

    with peer(answers) as stream:
        agent = Agent(stream)
        prove_qemu(agent, GuestQemu("/usr/bin/qemu-system-x86_64"))
        prove_qemu(agent, GuestQemu("/run/qemu", "abcd"))
        with pytest.raises(SetupError, match="build id abcd, not beef"):
            prove_qemu(agent, GuestQemu("/run/qemu", "beef"))


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@ROOT_ONLY
def test_other_users_are_different_and_nobody_s(agent: Agent) -> None:
    users = agent.other_users(2)
    assert len(set(users)) == 2
    for user in users:
        with pytest.raises(KeyError):
            pwd.getpwuid(user)


@ROOT_ONLY
def test_a_file_made_in_a_directory_that_was_given_away_is_its_owner_s(
    agent: Agent, directory: Path
) -> None:
    agent.make_directory("shared")
    agent.give("shared", 61234)
    agent.make_file("shared/data", [1], 4096)
    assert (directory / "shared" / "data").stat().st_uid == 61234
    agent.make_file("mine", [1], 4096)
    assert (directory / "mine").stat().st_uid == 0


@ROOT_ONLY
def test_a_child_that_became_another_user_ends_with_an_agent_that_is_killed(
    agent: Agent, tmp_path: Path
) -> None:
    code = "import os, time; os.setuid(61234); print('changed', flush=True); time.sleep(100)"
    env = {"PATH": os.environ["PATH"]}
    pid = agent.spawn("sleeper", [sys.executable, "-c", code], env, changes_user=True)

    def changed() -> bool | None:
        return True if "changed" in agent.read("sleeper.log")[0] else None

    poll(Deadline(10.0, "the child to change its user"), changed)
    os.kill(int(agent.hello()["pid"]), signal.SIGKILL)
    poll(Deadline(10.0, "the child to end"), lambda: None if is_alive(pid) else True)


def is_alive(pid: int) -> bool:
    """A zombie, whom nobody reaps in a container, is not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
