"""Which host a run gets, and why; on a machine that the test describes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hostfault.case.model import GuestImage, HostImage, Kernel, Qemu
from hostfault.host import emulated
from hostfault.host.emulated import EmulatedHost
from hostfault.kernel.build import LIMITS
from hostfault.plugin.options import Settings
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import MissingCapabilityError, UsageError
from hostfault.plumbing.ssh_keys import Identity
from hostfault.run import lab as lab_module
from hostfault.run.lab import CACHE_LIMITS, Lab

PROJECT = Path(__file__).parents[3]
PROBES = PROJECT / "images/probe"
OBTAIN = re.compile(r"obtain\(\s*\"([^\"]+)\"")
KERNEL = Kernel("7.3.4", "7.3.4+deb13", Path("/k/bzImage"), Path("/k/modules"), packaged=True)


class PretendedLab(Lab):
    """A lab to which everything is at hand."""

    _host_kernel = KERNEL
    _guest_kernel = KERNEL
    _qemu = Qemu("image", "11.1.3", ("qemu",))
    _host_image = HostImage("key", Path("/h/disk"), Path("/h/root"))
    _guest_image = GuestImage("key", Path("/g/initramfs"), "hash")
    _identity = Identity(Path("/i/client"), "", Path("/i/host"), "")


def lab(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: Settings,
    *,
    kvm: bool,
    nesting: bool = False,
    tracing: bool = True,
) -> Lab:
    reason = "" if kvm else "guest did not boot: KVM internal error"
    untraceable = "" if tracing else "only root may: use sudo for the local host"
    monkeypatch.setattr(lab_module, "why_no_tracing", lambda: untraceable)
    monkeypatch.setattr(lab_module, "why_not", lambda *_: reason)
    monkeypatch.setattr(lab_module, "_nesting", lambda: nesting)
    monkeypatch.setattr(lab_module, "host_initramfs", lambda *_: Path("/h/initramfs"))
    return PretendedLab(settings, lambda _: None, Cache(tmp_path))


def test_auto_is_local_where_a_guest_boots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(), kvm=True).facts()
    assert facts.host_kind == "local"
    assert facts.host_kernel is None
    assert facts.host_reason == "a guest boots on /dev/kvm"


def test_auto_is_emulated_where_none_boots_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(), kvm=False).facts()
    assert facts.host_kind == "emulated"
    assert facts.host_kernel == KERNEL
    assert facts.host_reason == "no usable /dev/kvm: guest did not boot: KVM internal error"


def test_auto_is_emulated_for_a_person_who_may_not_trace_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(), kvm=True, tracing=False).facts()
    assert facts.host_kind == "emulated"
    assert facts.host_reason == "only root may: use sudo for the local host"


def test_local_without_tracing_is_a_missing_capability(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(MissingCapabilityError, match="use sudo") as caught:
        lab(monkeypatch, tmp_path, Settings(host="local"), kvm=True, tracing=False).facts()
    assert caught.value.capability == "tracing"


@pytest.mark.parametrize(("kvm", "tracing"), [(False, True), (True, False)])
def test_who_requires_kvm_gets_no_emulated_host_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kvm: bool, tracing: bool
) -> None:
    settings = Settings(require=("kvm",))
    with pytest.raises(MissingCapabilityError) as caught:
        lab(monkeypatch, tmp_path, settings, kvm=kvm, tracing=tracing).facts()
    assert caught.value.capability == "kvm"


def test_kvm_is_not_among_all_as_for_want_of_it_no_test_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(require=("all",)), kvm=False).facts()
    assert facts.host_kind == "emulated"


def test_who_requires_kvm_gets_the_local_host_where_it_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(require=("kvm",)), kvm=True).facts()
    assert facts.host_kind == "local"


@pytest.mark.parametrize("settings", [{"host": "emulated"}, {"host_kernel": "6.1"}])
def test_requiring_kvm_and_asking_for_an_emulated_host_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str]
) -> None:
    wanted = Settings(require=("kvm",), **settings)
    with pytest.raises(UsageError, match="this machine's own kernel"):
        lab(monkeypatch, tmp_path, wanted, kvm=True).facts()


@pytest.mark.parametrize(
    ("kvm", "nesting", "accelerator"),
    [(False, False, "tcg"), (True, False, "tcg"), (True, True, "kvm"), (False, True, "tcg")],
)
def test_an_emulated_host_runs_on_kvm_where_nesting_works(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kvm: bool, nesting: bool, accelerator: str
) -> None:
    made = lab(monkeypatch, tmp_path, Settings(host="emulated"), kvm=kvm, nesting=nesting)
    host, _ = made._host_and_reason
    assert isinstance(host, EmulatedHost)
    assert host.spec.accelerator == accelerator


def test_local_without_kvm_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--host emulated needs no KVM"):
        lab(monkeypatch, tmp_path, Settings(host="local"), kvm=False).facts()


def test_a_local_host_has_the_kernel_that_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(host="local", host_kernel="6.1")
    with pytest.raises(UsageError, match="--host-kernel needs an emulated host"):
        lab(monkeypatch, tmp_path, settings, kvm=True).facts()


def test_asking_for_a_host_kernel_is_asking_for_an_emulated_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = lab(monkeypatch, tmp_path, Settings(host_kernel="6.1"), kvm=True).facts()
    assert facts.host_kind == "emulated"
    assert facts.host_reason == "--host-kernel boots in one"


def test_an_emulated_host_brings_its_own_qemu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--qemu needs a local host"):
        lab(monkeypatch, tmp_path, Settings(qemu="system"), kvm=False).facts()


def kinds_of_the_cache() -> set[str]:
    """Those that the source obtains; programs that are compiled have a kind each."""
    sources = [*(PROJECT / "hostfault").rglob("*.py"), *(PROJECT / "tests/machine").glob("*.py")]
    named = {kind for path in sources for kind in OBTAIN.findall(path.read_text())}
    return named | {path.stem for path in PROBES.glob("*.c")}


def test_every_kind_in_the_cache_has_a_bound_or_cannot_grow() -> None:
    kinds = kinds_of_the_cache()
    assert {"machines", "packages", "probe", "identity"} <= kinds
    assert kinds == {*CACHE_LIMITS, *LIMITS, "identity"}


def test_a_lab_leaves_each_kind_within_its_bound(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(CACHE_LIMITS, "packages", 0)
    other = Cache(tmp_path)
    entry = other.obtain("packages", "key", lambda place: (place / "deb").write_text("x" * 9000))
    other.close()
    with lab(monkeypatch, tmp_path, Settings(), kvm=False):
        assert entry.is_dir()
    assert not entry.exists()


def test_the_directories_of_runs_that_were_killed_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emulated, "SHORT", tmp_path)
    names = ("hostfault-4194999-x", f"hostfault-{os.getpid()}-x", "hostfault-bench-x", "other")
    for name in names:
        (tmp_path / name).mkdir()
    emulated.sweep_short_directories()
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
