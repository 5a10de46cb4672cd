"""A packaged kernel, a source tree and a build root that only pretend."""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from pathlib import Path

import pytest
from kernel_stand_ins import CONFIG, ENTRY, PATCH, RELEASE, SOURCE, FakeRoot, archive_of, write

from hostfault.case.model import Kernel
from hostfault.kernel import build, kvm_only, packaged, series, whole
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.versions import Range


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRoot:
    found = FakeRoot("suite", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")
    monkeypatch.setattr(build, "build_root", lambda cache, suite: found)
    monkeypatch.setattr(packaged, "build_root", lambda cache, suite: found)
    return found


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One packaged kernel with its source and headers; what is fetched is noted."""
    modules = tmp_path / "kernel/lib/modules" / RELEASE
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/kvm.ko.xz").write_bytes(b"stock")
    (modules / "modules.order").write_text("kernel/kvm.ko\n")
    image = tmp_path / "kernel/bzImage"
    image.write_bytes(b"\0" * 600 + b"6.6.6 (d@d) #1 SMP Debian 6.6.6-2~bpo1+1 (2026-01-02)\0")
    kernel = Kernel("6.6", RELEASE, image, modules, packaged=True)
    fetched: list[str] = []

    def unpack(place: Path, suite: str, packages: Sequence[str]) -> None:
        fetched.extend(packages)
        sources = place / "usr/src"
        write(sources / f"linux-headers-{RELEASE}", {".config": CONFIG, "Module.symvers": "s\n"})
        (sources / "linux-source-6.6.tar.xz").write_bytes(lzma.compress(archive_of(SOURCE)))

    monkeypatch.setattr(packaged, "unpack", unpack)
    for module in (build, packaged):
        monkeypatch.setattr(module, "packaged", lambda entry, cache: kernel)
    monkeypatch.setattr(build, "load", lambda: {"6.6": ENTRY})
    return fetched


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The packaged source, unpacked by somebody."""
    place = write(tmp_path / "linux", SOURCE)
    (place / "scripts/link").symlink_to("mod/modpost.c")
    return place


@pytest.fixture
def fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A series "fix" of one patch."""
    patch = tmp_path / "fix.patch"
    patch.write_text(PATCH)
    known = series.Series("fix", "a fix", (series.Fit(Range((6, 6), (6, 6)), (patch,)),))
    monkeypatch.setattr(series, "load", lambda path=None: {"fix": known})
    return patch


@pytest.fixture(autouse=True)
def depmod(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What depmod was asked for; the modules here are none that it could read."""
    asked: list[str] = []

    def run_tool(argv: Sequence[str], **rest: object) -> str:
        if argv[0] == "depmod":
            asked.append(argv[-1])
            return ""
        return real(argv, **rest)  # type: ignore[arg-type]

    real = kvm_only.run_tool
    monkeypatch.setattr(kvm_only, "run_tool", run_tool)
    monkeypatch.setattr(whole, "run_tool", run_tool)
    return asked
