"""The machine of an emulated Intel host: its configuration and its life; Bochs only pretends."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.case.model import HostImage, Kernel
from hostfault.host.bochs import BochsMachine, BochsSpec, _copied, _laid_out
from hostfault.host.outer_qemu import READY, Serial
from hostfault.image.bochs import Bochs
from hostfault.image.bochs_boot import BootFiles
from hostfault.plumbing.cache import key_of
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import (
    ConnectionLostError,
    HostfaultError,
    LaunchError,
    SetupError,
)


@pytest.fixture
def spec(tmp_path: Path) -> BochsSpec:
    names = ("kernel", "parameters", "rom", "initramfs", "preload.so")
    for name in names:
        (tmp_path / name).write_text(name)
    kernel, parameters, rom, initramfs, preloaded = (tmp_path / name for name in names)
    return BochsSpec(
        Bochs("key", tmp_path / "root", preloaded, tmp_path / "start", tmp_path / "say"),
        HostImage("image", tmp_path / "disk", tmp_path / "host"),
        Kernel("7.3.4", "7.3.4+deb13", kernel, tmp_path, packaged=True),
        BootFiles(kernel, parameters, rom, initramfs),
    )


def test_what_is_loaded_again_differs_in_nothing_but_the_files_in_memory(spec: BochsSpec) -> None:
    boot = spec.configuration("/dev/pts/7", Path("/c"), saved=False).splitlines()
    fork = spec.configuration("/dev/pts/7", Path("/c"), saved=True).splitlines()
    gone = [line for line in boot if line not in fork]
    assert [line.partition(":")[0] for line in gone] == [
        "optromimage1",
        "optramimage1",
        "optramimage2",
        "optramimage3",
    ]
    assert [line for line in boot if line in fork] == fork


def test_no_port_of_this_machine_is_opened(spec: BochsSpec) -> None:
    text = spec.configuration("/dev/pts/7", Path("/run/c"), saved=False)
    assert "display_library: term\n" in text
    assert 'com1: enabled=1, mode=file, dev="/run/c"\n' in text
    assert 'com2: enabled=1, mode=term, dev="/dev/pts/7"\n' in text
    assert "socket" not in text
    assert "rfb" not in text


def test_bochs_is_run_by_its_own_loader_with_our_library(spec: BochsSpec) -> None:
    loader, preload, library, *rest = spec.bochs.argv
    assert loader.endswith("root/lib64/ld-linux-x86-64.so.2")
    assert (preload, library) == ("--preload", str(spec.bochs.preloaded))
    assert rest[-1].endswith("root/usr/bin/bochs-bin")


def test_the_key_follows_what_the_files_hold(spec: BochsSpec) -> None:
    before = key_of(spec.key())
    assert key_of(spec.key()) == before
    spec.files.parameters.write_text("ept=0")
    assert key_of(spec.key()) != before


def test_a_fork_has_a_configuration_of_its_own_and_links_to_what_was_saved(tmp_path: Path) -> None:
    saved, directory = tmp_path / "ram", tmp_path / "d"
    saved.mkdir()
    directory.mkdir()
    for name in ("config", "memory.ram"):
        (saved / name).write_text("Bochs's")
    option, folder = _laid_out(directory, "ours", saved)
    assert option == "-r"
    assert Path(folder, "config").read_text() == "# hostfault\nours"
    assert Path(folder, "memory.ram").readlink() == saved / "memory.ram"
    assert (saved / "config").read_text() == "Bochs's"


def test_the_console_is_added_to_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "serial"
    log.write_text("boot\n")
    with _copied(tmp_path / "fifo", log):
        with (tmp_path / "fifo").open("w") as stream:
            stream.write("fork\n")
        poll(Deadline(5.0, "the log"), lambda: "fork" in log.read_text() or None)
    assert log.read_text() == "boot\nfork\n"


class PretendedBochs:
    """A process."""

    args = ("bochs", "-q")
    pid = 0  # there is none

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


class PretendedLine:
    """A line that listens at once."""

    agent = qmp = None

    def wait_running(self, _deadline: Deadline) -> None:
        return

    def wait_listening(self, _deadline: Deadline) -> None:
        return


class Pretended:
    """A machine, and what it is made of."""

    def __init__(self, folder: Path) -> None:
        self.serial, self.log = folder / "serial", folder / "log"
        self.bochs = PretendedBochs()
        ours, self.library = socket.socketpair()
        self.machine = BochsMachine(
            cast("Any", self.bochs),
            cast("Any", PretendedLine()),
            ours,
            Serial(self.serial),
            self.log,
        )

    def answer(self, words: bytes) -> None:
        self.library.sendall(words)


@pytest.fixture
def pretended(tmp_path: Path) -> Iterator[Pretended]:
    found = Pretended(tmp_path)
    yield found
    found.library.close()


def soon() -> Deadline:
    return Deadline(0.5, "the host to boot")


def test_a_host_is_up_when_its_init_says_so(pretended: Pretended) -> None:
    pretended.serial.write_text(f"{READY}\n")
    pretended.answer(b"ready\n")
    pretended.machine.boot(soon())


def test_a_host_that_says_nothing_does_not_come_up(pretended: Pretended) -> None:
    pretended.answer(b"ready\n")
    with pytest.raises(SetupError, match=r"does not come up: waited 0\.\d s for the host to boot"):
        pretended.machine.boot(soon())


def test_an_init_that_gives_up_says_why(pretended: Pretended) -> None:
    pretended.serial.write_text("noise\nHOSTFAULT-ERROR kvm_intel has no parameter npt\n")
    pretended.answer(b"ready\n")
    with pytest.raises(SetupError, match="HOSTFAULT-ERROR kvm_intel has no parameter") as caught:
        pretended.machine.boot(soon())
    assert "noise" not in str(caught.value)


def test_another_bochs_cannot_be_saved_and_that_is_said_at_once(pretended: Pretended) -> None:
    pretended.answer(b"unknown\n")
    with pytest.raises(HostfaultError, match="said 'unknown': the host to boot"):
        pretended.machine.boot(soon())


def test_a_bochs_that_ends_at_once_is_an_error_with_its_words(pretended: Pretended) -> None:
    pretended.bochs.code = 1
    pretended.log.write_text(">>PANIC<< no plugins found\n")
    pretended.library.close()
    with pytest.raises(SetupError, match="no plugins found"):
        pretended.machine.boot(soon())
    with pytest.raises(LaunchError, match="no plugins found"):
        pretended.machine.load(Path("saved"), soon())


def test_saving_names_a_new_folder_and_waits_for_the_answer(
    pretended: Pretended, tmp_path: Path
) -> None:
    threading.Timer(0.1, pretended.answer, (b"saved\n",)).start()
    pretended.machine.save(tmp_path / "ram", soon())
    assert pretended.library.recv(500).decode() == f"{tmp_path / 'ram'}\n"
    assert (tmp_path / "ram").is_dir()


def test_a_machine_that_cannot_be_saved_is_an_error(pretended: Pretended, tmp_path: Path) -> None:
    pretended.answer(b"failed\n")
    with pytest.raises(HostfaultError, match="said 'failed'"):
        pretended.machine.save(tmp_path / "ram", soon())


def test_a_bochs_that_dies_while_it_saves_is_a_lost_connection(
    pretended: Pretended, tmp_path: Path
) -> None:
    pretended.library.close()
    with pytest.raises(ConnectionLostError, match="Bochs ended"):
        pretended.machine.save(tmp_path / "ram", soon())


def test_a_host_that_runs_has_not_ended(pretended: Pretended) -> None:
    assert pretended.machine.ended() is None


def test_a_panic_is_the_end_of_a_host(pretended: Pretended) -> None:
    pretended.serial.write_text("Kernel panic - not syncing: Fatal exception\n")
    ended = pretended.machine.ended()
    assert ended is not None
    assert (ended.code, ended.signal) == (None, None)
    assert "Fatal exception" in ended.words


@pytest.mark.parametrize(
    "words",
    ["[CPU0  ] exception(): 3rd (13) exception with no resolution", "ACPI control: soft power off"],
)
def test_a_host_that_ends_its_machine_has_ended(pretended: Pretended, words: str) -> None:
    pretended.bochs.code = 1
    pretended.log.write_text(words)
    assert pretended.machine.ended() is not None


def test_a_bochs_that_is_gone_says_nothing_of_the_kernel(pretended: Pretended) -> None:
    pretended.bochs.code = -9
    with pytest.raises(LaunchError, match="Bochs"):
        pretended.machine.ended()


def test_a_host_that_does_not_answer_is_recorded_with_its_console(pretended: Pretended) -> None:
    pretended.serial.write_text("last words\n")
    pretended.bochs = PretendedBochs()
    assert "last words\n\nsilence" in pretended.machine.hung("silence").words


def test_the_descriptors_of_a_machine_are_closed_with_it(tmp_path: Path) -> None:
    def ours() -> list[str]:
        links = (os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir())
        return [link for link in links if link.startswith(str(tmp_path))]

    with _copied(tmp_path / "fifo", tmp_path / "log"):
        assert ours()
    assert not ours()
