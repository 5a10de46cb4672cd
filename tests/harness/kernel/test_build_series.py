"""A packaged kernel with a series of patches: what is built, kept and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_stand_ins import ENTRY, PATCH, RELEASE, SOURCE, X86, FakeRoot, identity_of

from hostfault.kernel import build, kvm_only, packaged
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import CacheMissError, LaunchError, SetupError, UsageError


def test_a_series_is_built_into_the_modules_of_a_packaged_kernel(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path, depmod: list[str]
) -> None:
    said: list[str] = []
    kernel = build.resolve_built("6.6+fix", cache, said.append)
    assert (kernel.name, kernel.release, kernel.packaged) == ("6.6+fix", RELEASE, False)
    assert kernel.build_id == identity_of({**SOURCE, X86: "int patched;\n"})
    assert kvm_only.build_id(kernel.modules / "updates/kvm.ko") == kernel.build_id
    assert (kernel.modules / "kernel/kvm.ko.xz").read_bytes() == b"stock"
    assert kernel.image.read_bytes().startswith(b"\0")
    assert depmod == [RELEASE]
    assert any("KVM only" in line for line in said)
    assert mirror == ["linux-source-6.6=6.6.6-2~bpo1+1", f"linux-headers-{RELEASE}=6.6.6-2~bpo1+1"]


def test_what_was_built_once_is_not_built_again(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path
) -> None:
    first = build.resolve_built("6.6+fix", cache)
    calls = len(root.calls)
    assert build.resolve_built("6.6+fix", cache) == first
    assert len(root.calls) == calls


def test_a_changed_patch_is_built_anew_but_the_source_is_prepared_once(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path
) -> None:
    first = build.resolve_built("6.6+fix", cache)
    fix.write_text(PATCH.replace("patched", "patched_again"))
    second = build.resolve_built("6.6+fix", cache)
    assert first.build_id != second.build_id
    assert len(mirror) == 2
    assert sum("modules_prepare" in call for call in root.calls) == 1


def test_another_compiler_builds_anew(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.resolve_built("6.6+fix", cache)
    newer = FakeRoot("suite", root.root, "gcc 15\n", root.ccache)
    monkeypatch.setattr(packaged, "build_root", lambda cache, suite: newer)
    monkeypatch.setattr(build, "build_root", lambda cache, suite: newer)
    build.resolve_built("6.6+fix", cache)
    assert sum("M=arch/x86/kvm" in call for call in newer.calls) == 1


def test_the_packaged_modules_are_shared_but_never_written_to(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path, tmp_path: Path
) -> None:
    kernel = build.resolve_built("6.6+fix", cache)
    stock = tmp_path / "kernel/lib/modules" / RELEASE
    assert (kernel.modules / "kernel/kvm.ko.xz").samefile(stock / "kernel/kvm.ko.xz")
    assert not (kernel.modules / "modules.order").samefile(stock / "modules.order")
    assert not (stock / "updates").exists()


def test_a_patch_that_does_not_apply_leaves_nothing_behind(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path
) -> None:
    fix.write_text(PATCH.replace("-int x86", "-int y86"))
    with pytest.raises(SetupError, match=rf"fix\.patch .*hunk 1 of {X86}"):
        build.resolve_built("6.6+fix", cache)
    assert [path for path in (cache.root / "built").iterdir() if path.is_dir()] == []


def test_a_series_that_changes_more_than_kvm_is_refused(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path
) -> None:
    fix.write_text(PATCH + "--- a/mm/gup.c\n+++ b/mm/gup.c\n@@ -1 +1 @@\n-int gup;\n+int g;\n")
    with pytest.raises(UsageError, match=r"mm/gup\.c"):
        build.resolve_built("6.6+fix", cache)


def test_an_unknown_kernel_lists_the_known_ones(cache: Cache, mirror: list[str], fix: Path) -> None:
    with pytest.raises(UsageError, match=r"'9\.9'.* 6\.6"):
        build.resolve_built("9.9+fix", cache)


def test_a_kernel_whose_source_is_gone_from_the_mirror_says_which_packages(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: object) -> None:
        raise SetupError("not there")

    monkeypatch.setattr(packaged, "unpack", unpack)
    with pytest.raises(SetupError, match=r"linux-source-6\.6 and linux-headers-.*6\.6\.6-2~bpo1"):
        build.resolve_built("6.6+fix", cache)


def test_a_dead_network_is_told_as_such(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpack(*_: object) -> None:
        raise CacheMissError("no network")

    monkeypatch.setattr(packaged, "unpack", unpack)
    with pytest.raises(CacheMissError, match="no network"):
        build.resolve_built("6.6+fix", cache)


def test_an_image_that_is_not_from_debian_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"6.6.6 (me@here) #1 SMP")
    with pytest.raises(SetupError, match="does not say which Debian package"):
        packaged.package_version(tmp_path / "bzImage")


def test_only_what_modules_need_is_kept_of_a_source(
    cache: Cache, root: FakeRoot, mirror: list[str]
) -> None:
    kept = packaged.packaged_base(ENTRY, cache).tree
    assert (kept / X86).exists()
    assert (kept / "scripts/link").is_symlink()
    assert not (kept / "drivers").exists()
    assert not (kept.parent / "packages").exists()


def test_a_build_root_that_cannot_keep_the_configuration_is_an_error(
    cache: Cache, root: FakeRoot, mirror: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = FakeRoot("suite", root.root, "gcc 14\n", root.ccache, dropped="CONFIG_MODULE_SIG=y")
    monkeypatch.setattr(packaged, "build_root", lambda cache, suite: poor)
    with pytest.raises(SetupError, match=r"olddefconfig dropped CONFIG_MODULE_SIG=y"):
        packaged.packaged_base(ENTRY, cache)


def test_a_packaged_source_that_cannot_be_prepared_is_not_the_patchs_fault(
    cache: Cache, root: FakeRoot, mirror: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*words: object, **_: object) -> str:
        raise LaunchError("preparing", ["make"], 2, "no.c:1:1: error: no header")

    monkeypatch.setattr(FakeRoot, "make", make)
    with pytest.raises(SetupError, match=r"no\.c:1:1: error: no header"):
        packaged.packaged_base(ENTRY, cache)


def test_what_is_built_does_not_fill_the_disk(
    cache: Cache,
    root: FakeRoot,
    mirror: list[str],
    fix: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build.resolve_built("6.6+fix", cache)
    cache.close()
    fix.write_text(PATCH.replace("patched", "patched_again"))
    monkeypatch.setattr(build, "LIMITS", {"built": 1})
    kept = build.resolve_built("6.6+fix", Cache(tmp_path / "cache"))
    assert kept.image.exists()
    assert len([path for path in (cache.root / "built").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("6.6+fix", True),
        ("tree:/some/where", True),
        ("tree:linux+x", True),
        ("6.6", False),
        ("/boot/vmlinuz-7.3.4+deb13", False),
        ("./bz+Image", False),
    ],
)
def test_what_is_built_is_told_from_names_and_paths(text: str, built: bool) -> None:
    assert build.is_built(text) is built


def test_a_file_with_a_plus_in_its_name_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinuz-7.3.4+deb13").touch()
    assert not build.is_built("vmlinuz-7.3.4+deb13")
