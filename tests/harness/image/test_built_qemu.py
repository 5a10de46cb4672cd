"""A QEMU that is built here: its names, what it is built of and how; nothing is compiled."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hostfault.image import qemu
from hostfault.kernel import series
from hostfault.kernel.buildroot import BuildRoot
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import SetupError, UsageError

NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"
TREE = {"VERSION": "10.0.13\n", "configure": "#!/bin/sh\n", "accel/kvm.c": "int kvm;\n"}
PATCH = "--- a/accel/kvm.c\n+++ b/accel/kvm.c\n@@ -1 +1 @@\n-int kvm;\n+int patched;\n"


@dataclass(frozen=True)
class PretendedRoot(BuildRoot):
    """Makes a program out of what it is given, as configure and ninja would."""

    calls: list[Sequence[str]] = field(default_factory=list)

    def run(self, tree: Path, command: Sequence[str], *, what: str, patience: float) -> str:
        self.calls.append(command)
        tree.with_name(f"{tree.name}.log").touch()
        assert (tree / "configs/devices/x86_64-softmmu/hostfault.mak").exists()
        if command[0] == "ninja":
            source = (tree / "accel/kvm.c").read_bytes()
            (tree / "build").mkdir()
            note = NOTE + hashlib.sha1(source, usedforsecurity=False).digest()
            (tree / "build" / qemu.PROGRAM).write_bytes(b"\x7fELF" + note)
        return ""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedRoot:
    found = PretendedRoot("trixie", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")
    monkeypatch.setattr(qemu, "build_root", lambda *_: found)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return written(tmp_path / "tree", TREE)


def written(tree: Path, files: dict[str, str]) -> Path:
    (tree / "configs/devices/x86_64-softmmu").mkdir(parents=True)
    (tree / "configs/devices/x86_64-softmmu/default.mak").touch()
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def packed(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A source package with a patch of its own."""
    place = tmp_path / "package"
    place.mkdir()
    packed(place / "qemu_10.0.13+ds.orig.tar.xz", {f"qemu-10/{n}": t for n, t in TREE.items()})
    debian = {"debian/patches/series": "# none but\nfix.diff\n", "debian/patches/fix.diff": PATCH}
    packed(place / "qemu_10.0.13+ds-0+deb13u1.debian.tar.xz", debian)
    (place / "qemu.dsc").write_text("Format: 3.0 (quilt)\nVersion: 1:10.0.13+ds-0+deb13u1\n")
    return place


def test_a_tree_is_built_once_and_again_when_a_file_of_it_changes(
    cache: Cache, root: PretendedRoot, tree: Path
) -> None:
    first = qemu.build_qemu(f"tree:{tree}", cache)
    assert first.program.name == "qemu-system-x86_64"
    assert first.build_id == hashlib.sha1(b"int kvm;\n", usedforsecurity=False).hexdigest()
    assert qemu.build_qemu(f"tree:{tree}", cache) == first
    assert len(root.calls) == 2
    (tree / "accel/kvm.c").write_text("int other;\n")
    assert qemu.build_qemu(f"tree:{tree}", cache).build_id != first.build_id
    assert len(root.calls) == 4


def test_what_a_build_has_left_in_a_tree_is_not_its_source(
    cache: Cache, root: PretendedRoot, tree: Path
) -> None:
    first = qemu.build_qemu(f"tree:{tree}", cache)
    (tree / "build").mkdir()
    (tree / "build/kvm.o").write_text("object")
    assert qemu.build_qemu(f"tree:{tree}", cache) == first


def test_a_directory_that_is_no_qemu_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it has no VERSION"):
        qemu.build_qemu(f"tree:{tmp_path}", cache)


def test_a_packaged_source_gets_its_own_patches_first_and_then_the_series(
    cache: Cache, root: PretendedRoot, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "fetch_source", lambda *_: package)
    monkeypatch.setattr(qemu, "lay_out", _with_devices(qemu.lay_out))
    built = qemu.build_qemu("10.0+unchanged", cache)
    assert built.build_id == hashlib.sha1(b"int patched;\n", usedforsecurity=False).hexdigest()
    assert qemu.package_version(package) == "1:10.0.13+ds-0+deb13u1"


def _with_devices(lay_out: object) -> object:
    def make(package: Path, tree: Path) -> None:
        lay_out(package, tree)  # type: ignore[operator]
        (tree / "configs/devices/x86_64-softmmu").mkdir(parents=True)

    return make


def test_a_package_with_a_file_missing_says_which(package: Path, tmp_path: Path) -> None:
    next(package.glob("*.orig.tar.xz")).unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(SetupError, match=r"orig\.tar"):
        qemu.lay_out(package, tmp_path / "out")


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [("9.9+unchanged", r"known are 10\.0"), ("10.0+nothing", "on-unbacked")],
)
def test_a_name_that_there_is_not_lists_those_there_are(
    cache: Cache, choice: str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        qemu.build_qemu(choice, cache)


def test_every_series_has_patches_that_are_there_for_a_source_that_there_is() -> None:
    for name in qemu.sources():
        for each in series.load(qemu.SERIES):
            assert all(path.is_file() for path in qemu.patches_of(f"{name}+{each}"))


def test_what_is_built_runs_guests_by_kvm_and_emulates_no_cpu() -> None:
    assert {"--enable-kvm", "--disable-tcg", "--disable-download"} <= set(qemu.CONFIGURE)
    assert f"--with-devices-x86_64={qemu.DEVICES.stem}" in qemu.CONFIGURE
