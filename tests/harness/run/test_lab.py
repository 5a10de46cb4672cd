"""What the cases of a run share, on a machine that the test describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hostfault.backing import BACKINGS
from hostfault.case.model import GuestImage, HostImage, Kernel, Qemu, Scenario
from hostfault.case.settings import Settings
from hostfault.host.emulated import PAYLOAD, EmulatedHost, GuestQemu
from hostfault.host.outer_qemu import Descriptors, Sockets
from hostfault.image.qemu import BuiltQemu
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import GuestLostError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.run import lab as lab_module
from hostfault.run.lab import CACHE_LIMITS, Lab

KERNEL = Kernel("7.3.4", "7.3.4+deb13", Path("/k/bzImage"), Path("/k/modules"), packaged=True)
NOWHERE = Path("/i")


class PretendedLab(Lab):
    """A lab to which everything is at hand."""

    _host_kernel = KERNEL
    _guest_kernel = KERNEL
    _qemu = Qemu("image", "11.1.3", ("true",))
    _host_image = HostImage("key", Path("/h/disk"), Path("/h/root"))
    _identity = Identity(NOWHERE, "", NOWHERE, "", NOWHERE, NOWHERE)
    _why_not_kvm = "KVM internal error"

    def _guest_image(self, _backing: object) -> GuestImage:
        return GuestImage("key", Path("/g/initramfs"), "hash")


@pytest.mark.parametrize(
    ("why_not", "nesting", "accelerator"),
    [("broken", False, "tcg"), ("", False, "tcg"), ("", True, "kvm"), ("broken", True, "tcg")],
)
def test_an_emulated_host_runs_on_kvm_where_nesting_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why_not: str, nesting: bool, accelerator: str
) -> None:
    monkeypatch.setattr(lab_module, "nesting_allowed", lambda: nesting)
    monkeypatch.setattr(lab_module, "host_initramfs", lambda *_: Path("/h/initramfs"))
    monkeypatch.setattr(PretendedLab, "_why_not_kvm", why_not)
    host = PretendedLab(Settings(host="emulated"), Cache(tmp_path)).host
    assert isinstance(host, EmulatedHost)
    assert host.machine_for(BACKINGS["ram"]).accelerator == accelerator


def test_a_parameter_of_kvm_is_in_the_snapshots_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lab_module, "host_initramfs", lambda *_: Path("/h/initramfs"))
    host = PretendedLab(Settings(host="emulated", kvm_options=("npt=0",)), Cache(tmp_path)).host
    assert isinstance(host, EmulatedHost)
    machine = host.machine_for(BACKINGS["ram"])
    words = machine.command(Sockets.below(Path("/")), Path("/s"), Descriptors(0, 0, 0))
    assert "kvm_amd.npt=0" in words[words.index("-append") + 1].split()


class Building(PretendedLab):
    """A lab whose guest runs on a QEMU that was built."""

    _built_qemu = BuiltQemu(Path("/q/qemu-system-x86_64"), "abcd")
    _qemu = Qemu("10.0+on-unbacked", "10.0.13", ("q",), "abcd")


def test_a_qemu_that_is_built_runs_the_guest_and_not_the_emulated_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    carried: dict[str, Path] = {}
    outer = PretendedLab._qemu
    monkeypatch.setattr(lab_module, "find_qemu", lambda *_: outer)
    monkeypatch.setattr(
        lab_module, "host_initramfs", lambda *given: carried.update(given[-1]) or Path("/h/i")
    )
    settings = Settings(host="emulated", qemu="10.0+on-unbacked")
    host = Building(settings, Cache(tmp_path)).host
    assert isinstance(host, EmulatedHost)
    assert host.machine_for(BACKINGS["ram"]).qemu is outer
    assert carried["qemu-system-x86_64"] == Path("/q/qemu-system-x86_64")
    assert host.guest_qemu == GuestQemu(f"{PAYLOAD}/qemu-system-x86_64", "abcd")


def test_a_lab_leaves_each_kind_within_its_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(CACHE_LIMITS, "packages", 0)
    other = Cache(tmp_path)
    old = other.obtain("packages", "old", lambda place: (place / "deb").write_text("x" * 9000))
    other.close()
    with PretendedLab(Settings(), Cache(tmp_path)):
        pass
    assert old.is_dir(), "a run that adds nothing does not measure what is there"
    cache = Cache(tmp_path)
    with PretendedLab(Settings(), cache):
        new = cache.obtain("packages", "new", lambda place: (place / "deb").write_text("x"))
        cache.release(new)
    assert not old.exists()


class Losing(PretendedLab):
    """A lab that loses its guest some times before a case comes to an end."""

    losses = 0

    def _run_once(self, test: str, scenario: Scenario, folder: Path) -> Any:
        (folder / "guest-console.log").write_text(f"{self.losses} to go")
        if self.losses:
            self.losses -= 1
            raise GuestLostError("the guest reset itself")
        return "a record"


SCENARIO = Scenario("virtiofs-dax", "none", "load", async_pf=True)


def test_a_guest_that_an_emulated_cpu_loses_is_tried_again_and_its_evidence_stays(
    tmp_path: Path,
) -> None:
    lab = Losing(Settings(), Cache(tmp_path / "cache"))
    lab.losses = 2
    folder = tmp_path / "folder"
    folder.mkdir()
    assert lab.run("test", SCENARIO, folder) == "a record"
    assert (folder / "guest-console.log").read_text() == "0 to go"
    assert (folder / "lost-1" / "guest-console.log").read_text() == "2 to go"
    assert (folder / "lost-2" / "guest-console.log").read_text() == "1 to go"


def test_a_guest_that_is_always_lost_is_an_error(tmp_path: Path) -> None:
    lab = Losing(Settings(), Cache(tmp_path / "cache"))
    lab.losses = 9
    with pytest.raises(GuestLostError):
        lab.run("test", SCENARIO, tmp_path)
