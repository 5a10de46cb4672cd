"""What the cases of a run share, on a machine that the test describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.backing import BACKINGS
from hostfault.case.model import GuestImage, HostImage, Kernel, Qemu
from hostfault.case.settings import Settings
from hostfault.host.emulated import EmulatedHost
from hostfault.plumbing.cache import Cache
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
