"""What the machine of an emulated Intel host is made of; what takes minutes only pretends."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.backing import BACKINGS
from hostfault.case.model import GuestImage, HostImage, Kernel, Qemu
from hostfault.case.settings import Settings
from hostfault.host.bochs import BochsSpec
from hostfault.host.emulated import EmulatedHost
from hostfault.image.bochs import Bochs
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.run import intel
from hostfault.run.intel import intel_machine
from hostfault.run.lab import Lab

NOWHERE = Path("/i")
IDENTITY = Identity(NOWHERE, "", NOWHERE, "", NOWHERE, NOWHERE)
IMAGE = HostImage("key", Path("/h/disk"), Path("/h/root"))
MAGIC = b"HdrS"
RELEASE = "7.3.4-mine"


def kernel_in(folder: Path, *builtin: str) -> Kernel:
    """A kernel with some modules built in, and no others."""
    modules = folder / "lib" / "modules" / RELEASE
    modules.mkdir(parents=True)
    lines = "".join(f"kernel/{name}.ko\n" for name in builtin)
    (modules / "modules.builtin").write_text(lines)
    (modules / "modules.order").touch()
    subprocess.run(["/usr/sbin/depmod", "--basedir", folder, RELEASE], check=True)
    image = bytearray(2048)
    image[0x1F1], image[0x201], image[0x202:0x206], image[0x206:0x208] = 1, 0x6A, MAGIC, b"\x0f\x02"
    (folder / "bzImage").write_bytes(image)
    return Kernel("mine", RELEASE, folder / "bzImage", modules, packaged=False)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Bochs and an initramfs; what the latter was asked for is in the result."""
    for name in ("preload.so", "start", "say", "initramfs"):
        (tmp_path / name).write_text(name)
    program = Bochs("key", tmp_path, tmp_path / "preload.so", tmp_path / "start", tmp_path / "say")
    asked: dict[str, Any] = {}

    def initramfs(*given: Any, **more: Any) -> Path:
        asked.update(more, payload=given[-1])
        return tmp_path / "initramfs"

    monkeypatch.setattr(intel, "bochs", lambda _: program)
    monkeypatch.setattr(intel, "host_initramfs", initramfs)
    return asked


def test_a_kernel_without_intels_half_of_kvm_is_one_clear_error(tmp_path: Path) -> None:
    kernel = kernel_in(tmp_path, "kvm-amd")
    with pytest.raises(
        UsageError,
        match=r"^--cpu intel: kernel mine \(7\.3\.4-mine\) has no kvm-intel, neither as a module "
        r"\(looked in .*\) nor built in$",
    ):
        intel_machine(Cache(tmp_path / "cache"), kernel, IMAGE, IDENTITY, {}, ())


def test_the_machine_has_the_drivers_of_what_bochs_emulates(
    pretended: Mapping[str, Any], tmp_path: Path
) -> None:
    kernel = kernel_in(tmp_path / "k", "kvm-intel")
    load = {"guest-kernel": Path("/g/bzImage")}
    spec = intel_machine(
        Cache(tmp_path / "cache"), kernel, IMAGE, IDENTITY, load, ("kvm_intel.ept=0",)
    )
    assert pretended["devices"] == ("ata_piix", "sr_mod")
    assert pretended["kvm"] == ("kvm-intel",)
    assert set(pretended["payload"]) == {"guest-kernel", "say"}
    assert spec.files.parameters.read_bytes().endswith(b" kvm_intel.ept=0\0")


class PretendedLab(Lab):
    """A lab to which everything is at hand."""

    _guest_kernel = cast("Any", Kernel("7.3.4", "7.3.4", NOWHERE, NOWHERE, packaged=True))
    _qemu = Qemu("image", "11.1.3", ("true",))
    _host_image = IMAGE
    _identity = IDENTITY
    _why_not_kvm = ""

    def _guest_image(self, _backing: object) -> GuestImage:
        return GuestImage("key", Path("/g/initramfs"), "hash")


@pytest.mark.usefixtures("pretended")
def test_a_lab_that_was_asked_for_intel_has_bochs_and_its_parameters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(PretendedLab, "_host_kernel", kernel_in(tmp_path / "k", "kvm-intel"))
    settings = Settings(cpu="intel", kvm_options=("ept=0", "kvm.tdp_mmu=0"))
    lab = PretendedLab(settings, Cache(tmp_path / "cache"))
    assert isinstance(lab.host, EmulatedHost)
    spec = lab.host.machine_for(BACKINGS["ram"])
    assert isinstance(spec, BochsSpec)
    words = spec.files.parameters.read_bytes().split(b"\0")[-2].decode().split()
    assert {"kvm_intel.ept=0", "kvm.tdp_mmu=0"} <= set(words)
