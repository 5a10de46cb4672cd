"""Whether a machine will do as a local host. The QEMUs are small scripts that end at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.agent import tracing
from hostfault.case.model import GuestImage, Kernel, Qemu
from hostfault.host import preflight as usable
from hostfault.plumbing.cache import Cache

NO_MEMORY = "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory"
WARNING = "qemu-system-x86_64: -mon chardev=qmp: warning: '-mon' is deprecated"
INTERNAL_ERROR = f"""{WARNING}
KVM internal error. Suberror: 1
extra data[0]: 0x0000000000000001
emulation failure
RAX=000000000c692990 RBX=0000000004bd9b64
ES =0000 0000000000000000 00000000 00000000"""


class Machine:
    """One whose QEMU says something and ends; "starts" counts how often it was started."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = Cache(home / "cache")
        (home / "bzImage").touch()

    @property
    def starts(self) -> int:
        started = self.home / "started"
        return len(started.read_text().splitlines()) if started.exists() else 0

    def why_not(self, words: str) -> str:
        program = self.home / "qemu"
        program.write_text(
            f"#!/bin/sh\necho start >>{self.home}/started\ncat >&2 <<'END'\n{words}\nEND\nexit 1\n"
        )
        program.chmod(0o755)
        kernel = Kernel("7.3", "7.3.4", self.home / "bzImage", self.home, packaged=True)
        image = GuestImage("key", self.home / "initramfs", "")
        return usable.why_not(Qemu("x", "11.1.3", (str(program),)), kernel, image, self.cache)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(usable, "DEVICE", tmp_path / "kvm")
    return Machine(tmp_path)


def test_a_machine_without_the_device_says_so_and_learns_of_a_new_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(usable, "DEVICE", machine.home / "nothing")
        assert "there is no /dev/kvm" in machine.why_not(NO_MEMORY)
    assert "Cannot allocate memory" in machine.why_not(NO_MEMORY)


def test_want_of_memory_is_told_in_qemus_words_and_asked_about_anew(machine: Machine) -> None:
    for _ in range(2):
        assert machine.why_not(f"{WARNING}\n{NO_MEMORY}") == f"guest did not boot: {NO_MEMORY}"
    assert machine.starts == 2


def test_a_qemu_that_says_nothing_is_told_by_its_code(machine: Machine) -> None:
    assert machine.why_not(WARNING) == "guest did not boot: QEMU ended with code 1"


def test_a_guest_that_does_not_boot_in_time_is_asked_about_anew(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["guest did not boot: waited 60.0 s for a guest to boot on /dev/kvm", ""])
    monkeypatch.setattr(usable, "_try", lambda *_: next(answers))
    assert "waited 60.0 s" in machine.why_not("")
    assert machine.why_not("") == ""


def test_a_kvm_that_cannot_run_the_guest_is_asked_once(machine: Machine) -> None:
    for _ in range(2):
        reason = machine.why_not(INTERNAL_ERROR)
        assert reason == ("guest did not boot: KVM internal error. Suberror: 1, emulation failure")
    assert machine.starts == 1


def test_a_guest_that_boots_is_booted_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([""])
    monkeypatch.setattr(usable, "_try", lambda *_: next(answers))
    for _ in range(2):
        assert machine.why_not("") == ""


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    """A directory in the shape of a tracefs; what it lacks are the files of an instance."""
    (tmp_path / "instances").mkdir()
    return tmp_path


def test_tracing_that_works_leaves_no_instance_behind(tracefs: Path) -> None:
    assert usable.why_no_tracing(tracefs) == ""
    assert list((tracefs / "instances").iterdir()) == []


def test_a_tracefs_that_is_not_mounted_says_how_to_mount_it(tmp_path: Path) -> None:
    assert "mount -t tracefs tracefs" in usable.why_no_tracing(tmp_path)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(13, "Permission denied"), "tracefs is root's"),
        (OSError("no CONFIG_HIST_TRIGGERS\nand a log"), "be counted: no CONFIG_HIST_TRIGGERS"),
    ],
)
def test_tracing_that_is_refused_says_what_to_do(
    tracefs: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, advice: str
) -> None:
    def refuse(_: tracing.Tracer) -> list[str]:  # and of perf events there is no number
        raise error

    monkeypatch.setattr(tracing.Tracer, "start", refuse)  # root is never refused
    reason = usable.why_no_tracing(tracefs)
    assert advice in reason
    assert "\n" not in reason
