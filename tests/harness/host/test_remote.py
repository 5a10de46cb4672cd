"""A machine that is leased over SSH: what it is, what is wrong with it, and how it ends."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lab_stand_in import GOOD_KVM, LabMachine, new_key

from hostfault.case.model import Ended
from hostfault.host import remote
from hostfault.host.leased import LeasedMachine, leased
from hostfault.host.remote import RELAY, Console, RemoteLife, programs
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, SetupError
from hostfault.remote.agent import Agent
from hostfault.remote.forward import forwarded
from hostfault.remote.openssh import Target

Start = Callable[..., LabMachine]
ENOUGH = 1 << 20
LEASE_OF = "was = lease; there = Path({!r}); lease = lambda: was(there)"
NO_KVM = LEASE_OF.format("/nowhere")


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a machine "lab", which ssh_config(5) knows how to reach."""
    machines: list[LabMachine] = []
    # Its sockets' paths must be short, and pytest's directories can be long.
    short = TemporaryDirectory(prefix="lab-")

    def run(**how: object) -> LabMachine:
        folder = Path(short.name) / f"machine-{len(machines)}"
        machine = LabMachine(folder, **how)  # type: ignore[arg-type]
        machine.start()
        machines.append(machine)
        configure(tmp_path, machine)
        return machine

    monkeypatch.setenv("HOME", str(tmp_path))
    yield run
    for machine in machines:
        machine.stop()
    short.cleanup()


def configure(home: Path, machine: LabMachine) -> None:
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh/config").write_text(
        f"Host lab\n HostName 127.0.0.1\n Port {machine.port}\n User tester\n"
        f" IdentityFile {machine.folder}/client\n IdentitiesOnly yes\n"
    )
    key = f"{machine.key.get_name()} {machine.key.get_base64()}"
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{machine.port} {key}\n")


LAB = Target("lab")


def lease_it(needed: int = ENOUGH) -> LeasedMachine:
    with leased(LAB, needed) as machine:
        return machine


def test_a_machine_says_what_it_is_and_keeps_nothing(start: Start) -> None:
    lab = start()
    with leased(LAB, ENOUGH) as machine:
        assert machine.facts.release == os.uname().release
        directory = Path(machine.facts.directory)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert lab.left() == [directory.name]
    assert lab.left() == []


def test_files_that_are_put_are_there_and_none_is_sent_twice(start: Start, tmp_path: Path) -> None:
    start()
    (tmp_path / "file").write_text("words")
    with tarfile.open(tmp_path / "more.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "file", "below/other")
    with leased(LAB, ENOUGH) as machine:
        machine.put({"put/file": tmp_path / "file"})
        machine.send(tmp_path / "more.tar.gz")
        (tmp_path / "file").unlink()
        machine.put({"put/file": tmp_path / "file"})
        there = Path(machine.facts.directory)
        assert (there / "put/file").read_text() == "words"
        assert (there / "below/other").read_text() == "words"


def test_an_agent_there_answers_and_ends_with_the_lease(start: Start) -> None:
    lab = start()
    with leased(LAB, ENOUGH) as machine:
        machine.put(programs())
        agent = Agent(machine.channel(RELAY, f"{machine.facts.directory}/agents"))
        told = agent.hello()
        assert str(told["dir"]).startswith(machine.facts.directory)
        env = {"PATH": os.environ["PATH"]}
        child = agent.spawn("sleeper", ["sleep", "100"], env)
    poll(Deadline(30.0, "the child to end"), lambda: None if runs(child) else True)
    assert lab.left() == []


def test_a_socket_there_is_reached_here_though_it_is_made_later(
    start: Start, tmp_path: Path
) -> None:
    start()
    there = tmp_path / "there"
    with leased(LAB, ENOUGH) as machine:
        machine.put(programs())
        with (
            forwarded(tmp_path / "here", lambda: machine.channel(RELAY, str(there))),
            socket.socket(socket.AF_UNIX) as ours,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            ours.connect(str(tmp_path / "here"))
            ours.sendall(b"early ")
            listener.bind(str(there))
            listener.listen(1)
            listener.settimeout(30.0)
            theirs, _ = listener.accept()
            with theirs:
                theirs.settimeout(30.0)
                ours.settimeout(30.0)
                ours.sendall(b"bird\n")
                assert theirs.makefile("rb").readline() == b"early bird\n"
                theirs.sendall(b"worm")
                assert ours.recv(10) == b"worm"
            assert ours.recv(10) == b""


def test_when_the_connection_breaks_the_machine_ends_and_removes_all_by_itself(
    start: Start,
) -> None:
    lab = start()
    with leased(LAB, ENOUGH) as machine:
        machine.put(programs())
        agent = Agent(machine.channel(RELAY, f"{machine.facts.directory}/agents"), timeout=5.0)
        child = agent.spawn("sleeper", ["sleep", "100"], {"PATH": os.environ["PATH"]})
        lab.hang_up()
        with pytest.raises(ConnectionLostError):
            agent.hello()
        poll(Deadline(30.0, "the child to end"), lambda: None if runs(child) else True)
        poll(Deadline(30.0, "its files to go"), lambda: None if lab.left() else True)
        assert not machine.alive
        with pytest.raises(ConnectionLostError, match=r"ssh://lab: the connection broke"):
            machine.channel(RELAY, "nowhere")


def test_a_machine_that_hears_nothing_any_more_removes_all_by_itself(start: Start) -> None:
    """As when a cable is pulled: the connection stands, and nobody is at its other end."""
    lab = start(patch=f"{GOOD_KVM}; SILENCE = 1.0")
    with leased(LAB, ENOUGH):
        poll(Deadline(30.0, "its files to go"), lambda: None if lab.left() else True)


@pytest.mark.parametrize(
    ("how", "needed", "complaint"),
    [
        ({"patch": NO_KVM}, ENOUGH, "there is no /nowhere"),
        ({"patch": "platform.machine = lambda: 'riscv64'"}, ENOUGH, "it is a riscv64"),
        ({"patch": "sys.version_info = (3, 9)"}, ENOUGH, "older than 3.11"),
        ({"python": False}, ENOUGH, "there is no python3 on it"),
        ({}, 1 << 50, "no room for our files: .* MiB are free"),
        ({"patch": "raise OSError('a disk that died')"}, ENOUGH, "a disk that died"),
    ],
)
def test_a_machine_that_will_not_do_is_one_clear_error_and_keeps_nothing(
    start: Start, how: dict[str, object], needed: int, complaint: str
) -> None:
    lab = start(**how)
    with pytest.raises(SetupError, match=complaint) as caught:
        lease_it(needed)
    assert str(caught.value).startswith("ssh://lab: ")
    assert len(str(caught.value).splitlines()) == 1 or "disk" in complaint
    assert lab.left() == []


def test_a_machine_is_leased_to_one_run_at_a_time(start: Start, tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    lab = start(patch=f"fcntl.ioctl = lambda *_: 12; {LEASE_OF.format(str(device))}")
    with leased(LAB, ENOUGH):
        with pytest.raises(SetupError, match="another run of hostfault is using this machine"):
            lease_it()
        assert len(lab.left()) == 1
    lease_it()


def test_an_archive_that_does_not_fit_is_an_error_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    lab = start()
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive" * 1000)
    with (
        leased(LAB, ENOUGH) as machine,
        pytest.raises(SetupError, match=r"bad\.tar\.gz cannot be unpacked there"),
    ):
        machine.send(tmp_path / "bad.tar.gz")
    assert lab.left() == []


def test_a_host_key_that_is_not_known_or_another_one_is_an_error(
    start: Start, tmp_path: Path
) -> None:
    lab = start()
    known = tmp_path / ".ssh/known_hosts"
    other = new_key(tmp_path / "other")
    known.write_text(f"[127.0.0.1]:{lab.port} {other.get_name()} {other.get_base64()}\n")
    with pytest.raises(SetupError, match="its host key is another"):
        lease_it()
    known.write_text("")
    with pytest.raises(SetupError, match="its host key is not known"):
        lease_it()
    assert lab.children == []


def test_keys_that_are_refused_and_a_machine_that_is_off_are_told_apart(
    start: Start, tmp_path: Path
) -> None:
    lab = start()
    new_key(lab.folder / "client")
    with pytest.raises(SetupError, match="refuses our keys"):
        lease_it()
    lab.stop()
    with pytest.raises(ConnectionLostError, match="cannot be reached"):
        lease_it()


class TestItsDeath:
    """Of a machine that no longer answers."""

    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote, "RETURN_PATIENCE", 3.0)

    def test_back_with_another_boot_id_it_has_died(self, start: Start) -> None:
        lab = start(boot_id="another-boot")
        with leased(LAB, ENOUGH) as machine:
            lab.hang_up()
            ended = RemoteLife(machine, Console("")).ended_silently("no answer to sample")
        assert isinstance(ended, Ended)
        assert "back with boot id another-boot" in ended.words

    def test_back_with_the_same_it_was_the_connection(self, start: Start) -> None:
        lab = start()
        with leased(LAB, ENOUGH) as machine:
            lab.hang_up()
            assert RemoteLife(machine, Console("")).ended_silently("no answer") is None

    def test_not_back_in_time_says_what_was_seen_last(self, start: Start) -> None:
        lab = start()
        with leased(LAB, ENOUGH) as machine:
            lab.stop()
            with pytest.raises(ConnectionLostError, match=r"no answer to sample; .*be reached"):
                RemoteLife(machine, Console("")).ended_silently("no answer to sample")

    def test_its_console_tells_sooner(self, start: Start, tmp_path: Path) -> None:
        lab = start()
        shown = tmp_path / "console"
        shown.write_text("Kernel panic - not syncing: of an earlier run\n")
        console = Console(str(shown))
        with leased(LAB, ENOUGH) as machine:
            lab.stop()
            with shown.open("a") as stream:
                stream.write("Kernel panic - not syncing: sysrq triggered crash\n")
            ended = RemoteLife(machine, console).ended_silently("no answer")
        assert isinstance(ended, Ended)
        assert "sysrq" in ended.words
        assert "earlier" not in ended.words


def test_a_console_may_be_a_command_and_one_that_fails_is_told(tmp_path: Path) -> None:
    shown = tmp_path / "console"
    shown.write_text("before\n")
    console = Console(f"cat {shown}")
    with shown.open("a") as stream:
        stream.write("after\n")
    assert console.news() == "after\n"
    with pytest.raises(SetupError, match="--host-console"):
        Console("exit 3")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
