"""Kernels that are built: what is compared, which way is taken, what is kept, what is refused.

No compiler runs. A stand-in for the build root makes "modules" out of KVM's source, so that what
was built can be told from what it was built of.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hostfault.cache import Cache
from hostfault.errors import CacheMissError, HostfaultError, LaunchError, SetupError, UsageError
from hostfault.kernel import build, buildroot, configuration, kvm_only, packaged, series, whole
from hostfault.kernel.buildroot import BuildRoot, error_lines
from hostfault.kernel.catalog import CatalogEntry
from hostfault.kernel.configuration import Option
from hostfault.kernel.source import (
    difference,
    files_of,
    is_kvm,
    is_unused,
    manifest,
    shared_structs,
    version_in,
    without_strangers,
)
from hostfault.model import Kernel

RELEASE = "6.6.6+test-amd64"
ENTRY = CatalogEntry("6.6", RELEASE, "suite", ("linux-image-test",))
CONFIG = "CONFIG_KVM=m\nCONFIG_MODULE_SIG=y\nCONFIG_SMP=y\n"
MAKEFILE = "VERSION = 6\nPATCHLEVEL = 6\nSUBLEVEL = 6\nEXTRAVERSION =\nNAME = Test\n"
X86 = "arch/x86/kvm/x86.c"
HOST = "arch/x86/include/asm/kvm_host.h"
PMU = "struct kvm_pmu {\n\tu64 counters;\n};\n"
SOURCE = {
    "Makefile": MAKEFILE,
    "Kbuild": "",
    "Documentation/virt/kvm/api.rst": "words\n",
    "arch/arm64/kvm/arm.c": "int arm;\n",
    X86: "int x86;\n",
    HOST: "struct kvm_vcpu_arch {\n\tint a;\n};\n" + PMU,
    "drivers/net/driver.c": "int driver;\n",
    "include/linux/kvm_host.h": "struct kvm;\n",
    "include/linux/mm.h": "struct page;\n",
    "mm/gup.c": "int gup;\n",
    "scripts/mod/modpost.c": "int main;\n",
    "virt/kvm/kvm_main.c": "int main;\n",
}
PATCH = f"--- a/{X86}\n+++ b/{X86}\n@@ -1 +1 @@\n-int x86;\n+int patched;\n"
ERRORS = """\
  CC      x86.o
                 from apf_error.c:18:
/src/include/linux/list.h:1086:54: note: expected 'struct hlist_node *'
/src/include/linux/hashtable.h:61:30: error: passing argument 2 from incompatible pointer type
   61 |         hlist_add_head(node, &hashtable[key])
      |                              ^~~~~~~~~~~~~~~
apf_error.c:172:17: note: in expansion of macro 'hash_add'
make[3]: *** [/src/scripts/Makefile.build:295: apf_error.o] Error 1
make[3]: *** Waiting for unfinished jobs....
"""


def write(tree: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


@dataclass(frozen=True)
class FakeRoot(BuildRoot):
    """Makes files as a kernel's make would, out of what it is given."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    dropped: str = ""  # an option that no configuration takes

    def make(self, tree: Path, *words: str, what: str, patience: float) -> str:
        self.calls.append(words)
        tree.with_name(f"{tree.name}.log").touch()
        if words[-1] in ("olddefconfig", "allnoconfig"):
            self._configure(tree, words)
        elif "modules_prepare" in words:
            write(tree, {"include/generated/utsrelease.h": RELEASE})
        elif "M=arch/x86/kvm" in words:
            self._modules(tree, tree / "arch/x86/kvm")
        elif "bzImage" in words:
            self._modules(tree, tree / "arch/x86/kvm")
            image = "kernel of " + (tree / "mm/gup.c").read_text()
            release = "6.6.6-hostfault\n"
            write(tree, {"arch/x86/boot/bzImage": image, "Module.symvers": "symbols\n"})
            write(tree, {"include/config/kernel.release": release})
        elif "modules_install" in words:
            place = tree / "hostfault-installed/lib/modules/6.6.6-hostfault/kernel/arch/x86/kvm"
            place.mkdir(parents=True)
            shutil.copy(tree / "arch/x86/kvm/kvm.ko", place)
        return ""

    def _configure(self, tree: Path, words: Sequence[str]) -> None:
        merged = tree / "hostfault.config"
        config = tree / ".config"
        source = merged if words[-1] == "allnoconfig" else config
        lines = [line for line in source.read_text().splitlines() if line != self.dropped]
        config.write_text("".join(f"{line}\n" for line in lines))

    def _modules(self, tree: Path, place: Path) -> None:
        names = sorted(filter(is_kvm, files_of(tree)))
        identity = hashlib.sha1("".join((tree / name).read_text() for name in names).encode())
        note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0" + identity.digest()
        for name in kvm_only.MODULES:
            (place / name).write_bytes(b"\x7fELF" + note)


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


def archive_of(files: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"linux-source-6.6/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("linux-source-6.6/scripts/link")
        link.type, link.linkname = tarfile.SYMTYPE, "mod/modpost.c"
        archive.addfile(link)
    return sink.getvalue()


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
    known = series.Series("fix", "a fix", (series.Fit((6, 6), (6, 6), (patch,)),))
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


def identity_of(files: dict[str, str]) -> str:
    """The build id that :class:`FakeRoot` gives to the KVM of these files."""
    names = sorted(filter(is_kvm, files))
    return hashlib.sha1("".join(files[name] for name in names).encode()).hexdigest()


# --- a packaged kernel with a series ------------------------------------------------------


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
    with pytest.raises(SetupError, match=rf"fix\.patch does not apply: hunk 1 of {X86}"):
        build.resolve_built("6.6+fix", cache)
    assert [path for path in (cache.root / "built").iterdir() if path.is_dir()] == []


def test_a_series_that_changes_more_than_kvm_is_refused(
    cache: Cache, root: FakeRoot, mirror: list[str], fix: Path
) -> None:
    fix.write_text(PATCH + "--- a/mm/gup.c\n+++ b/mm/gup.c\n@@ -1 +1 @@\n-int gup;\n+int g;\n")
    with pytest.raises(UsageError, match=r"changes mm/gup\.c, which is not part of KVM"):
        build.resolve_built("6.6+fix", cache)


def test_an_unknown_kernel_lists_the_known_ones(cache: Cache, mirror: list[str], fix: Path) -> None:
    with pytest.raises(UsageError, match=r"no kernel '9\.9' to patch; known are 6\.6"):
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


# --- a source tree ------------------------------------------------------------------------


def resolve_tree(tree: Path, cache: Cache) -> tuple[Kernel, str]:
    said: list[str] = []
    kernel = build.resolve_built(f"tree:{tree}", cache, said.append)
    return kernel, "\n".join(said)


def test_a_tree_that_differs_in_kvm_alone_gets_kvm_only(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {X86: "int mine;\n"})
    kernel, said = resolve_tree(tree, cache)
    assert f"KVM only: differs from {RELEASE} in {X86}" in said
    assert kernel.release == RELEASE
    assert kernel.build_id == identity_of({**SOURCE, X86: "int mine;\n"})


def test_what_a_tree_has_removed_from_kvm_is_not_built(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    (tree / "include/linux/kvm_host.h").unlink()
    (tree / "virt/kvm/kvm_main.c").unlink()
    write(tree, {"virt/kvm/new.c": "int main;\n"})
    kernel, _ = resolve_tree(tree, cache)
    assert kernel.build_id != identity_of(SOURCE)


def test_a_tree_in_git_counts_by_what_git_does_not_ignore(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {".gitignore": "*.o\n/ignored.c\n", "mm/gup.o": "object", "ignored.c": "int i;\n"})
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    subprocess.run(["git", "-C", str(tree), "add", "-f", *SOURCE], check=True)
    _, said = resolve_tree(tree, cache)
    assert f"KVM only: differs from {RELEASE} in nothing" in said
    write(tree, {"mm/untracked.c": "int u;\n"})
    _, said = resolve_tree(tree, cache)
    assert "whole kernel: differs" in said
    assert "mm/untracked.c" in said


def test_products_of_a_build_in_the_tree_make_no_difference(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    products = ("mm/gup.o", "include/generated/x.h", "scripts/kconfig/parser.tab.c", "vmlinux")
    write(tree, dict.fromkeys(products, "made"))
    _, said = resolve_tree(tree, cache)
    assert "KVM only" in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mm/gup.c", "int other;\n"),
        ("include/linux/new.h", "struct new;\n"),
        ("drivers/net/driver.c", "int other;\n"),
    ],
)
def test_a_tree_that_differs_elsewhere_gets_a_whole_kernel(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path, name: str, text: str
) -> None:
    write(tree, {name: text})
    kernel, said = resolve_tree(tree, cache)
    assert f"whole kernel: differs from {RELEASE} in {name}" in said
    assert kernel.release == "6.6.6-hostfault"
    assert not kernel.packaged
    assert kernel.build_id == identity_of(SOURCE)


def test_a_struct_that_the_kernel_proper_looks_into_takes_a_whole_kernel(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {HOST: SOURCE[HOST].replace("u64 counters", "u32 counters")})
    _, said = resolve_tree(tree, cache)
    assert "whole kernel: a struct of KVM's headers" in said


def test_a_version_that_nobody_packages_gets_a_whole_kernel(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"Makefile": MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc1")})
    write(tree, {"Makefile": MAKEFILE.replace("SUBLEVEL = 6", "SUBLEVEL = 7")})
    _, said = resolve_tree(tree, cache)
    assert "whole kernel: no packaged kernel with source is 6.6.7" in said


def test_after_a_whole_kernel_the_next_change_of_kvm_is_kvm_only_again(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"mm/gup.c": "int other;\n"})
    first, _ = resolve_tree(tree, cache)
    write(tree, {X86: "int mine;\n"})
    second, said = resolve_tree(tree, cache)
    assert "KVM only, for the whole kernel 6.6.6-hostfault" in said
    assert sum("bzImage" in call for call in root.calls) == 1
    assert first.build_id != second.build_id
    assert second.image.read_text() == "kernel of int other;\n"
    assert (second.modules / "updates/kvm.ko").exists()
    assert not (first.modules / "updates").exists()


def test_a_whole_kernel_is_built_once_for_the_same_source(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"mm/gup.c": "int other;\n"})
    first, _ = resolve_tree(tree, cache)
    calls = len(root.calls)
    assert resolve_tree(tree, cache)[0] == first
    assert len(root.calls) == calls


def test_a_tree_is_never_written_to(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"mm/gup.c": "int other;\n"})
    before = manifest(
        tree, [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]
    )
    resolve_tree(tree, cache)
    after = manifest(
        tree, [str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()]
    )
    assert before == after


def test_a_configuration_of_another_version_is_refused(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {".config": "#\n# Linux/x86 6.6.5 Kernel Configuration\n#\nCONFIG_SMP=y\n"})
    with pytest.raises(UsageError, match=r"is Linux 6\.6\.6, but its \.config is of 6\.6\.5"):
        resolve_tree(tree, cache)


def test_a_configuration_of_the_tree_is_taken_with_the_suites_options_on_top(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    heading = "#\n# Linux/x86 6.6.6 Kernel Configuration\n#\n"
    write(tree, {".config": f"{heading}CONFIG_MINE=y\n", "mm/gup.c": "int other;\n"})
    resolve_tree(tree, cache)
    assert ("olddefconfig",) in root.calls
    config = next((cache.root / "whole-kernels").glob("*/tree/.config")).read_text().splitlines()
    assert "CONFIG_MINE=y" in config
    assert "CONFIG_KVM=m" in config


def test_an_option_that_is_gone_is_an_error_that_names_it(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = FakeRoot("suite", root.root, "gcc 14\n", root.ccache, dropped="CONFIG_FUSE_DAX=y")
    monkeypatch.setattr(build, "build_root", lambda cache, suite: picky)
    write(tree, {"mm/gup.c": "int other;\n"})
    with pytest.raises(SetupError, match=r"CONFIG_FUSE_DAX=y \(40-devices\.config; not there\)"):
        resolve_tree(tree, cache)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no kernel source: Makefile: No such file"),
        ({"Makefile": "all:\n\ttrue\n"}, "no kernel source: its Makefile names no version"),
    ],
)
def test_what_is_no_kernel_source_is_refused(
    cache: Cache, tmp_path: Path, files: dict[str, str], complaint: str
) -> None:
    (tmp_path / "place").mkdir()
    write(tmp_path / "place", files)
    with pytest.raises(UsageError, match=complaint):
        resolve_tree(tmp_path / "place", cache)


def test_a_git_tree_that_git_cannot_read_is_an_error(cache: Cache, tree: Path) -> None:
    (tree / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(UsageError, match="git cannot list its files"):
        resolve_tree(tree, cache)


# --- source trees -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kvm"),
    [
        ("arch/x86/kvm/mmu/mmu.c", True),
        ("virt/kvm/async_pf.c", True),
        ("include/linux/kvm_host.h", True),
        ("include/trace/events/kvm.h", True),
        ("arch/x86/include/asm/kvm_host.h", True),
        ("arch/x86/include/asm/kvm-x86-ops.h", True),
        ("include/uapi/linux/kvm.h", True),
        # the kernel as a guest of KVM: compiled into the kernel proper
        ("arch/x86/include/asm/kvm_para.h", False),
        ("include/linux/kvm_para.h", False),
        ("arch/x86/kernel/kvm.c", False),
        ("virt/lib/irqbypass.c", False),
        ("arch/arm64/kvm/arm.c", False),
        ("mm/gup.c", False),
    ],
)
def test_what_belongs_to_kvm(name: str, kvm: bool) -> None:
    assert is_kvm(name) is kvm


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("Documentation/virt/kvm/api.rst", True),
        ("Documentation/Kconfig", False),
        ("arch/arm64/Makefile", True),
        ("arch/Kconfig", False),
        ("arch/x86/Makefile", False),
        ("arch/um/scripts/Makefile.rules", False),
        ("tools/testing/selftests/kvm/lib.c", True),
        ("tools/objtool/check.c", False),
        ("MAINTAINERS", True),
        ("mm/.kunitconfig", True),
        ("mm/gup.c", False),
    ],
)
def test_what_no_build_reads(name: str, unused: bool) -> None:
    assert is_unused(name) is unused


def test_a_difference_tells_kvm_from_the_rest() -> None:
    old = {X86: "1", "mm/gup.c": "1", "mm/gone.c": "1", "same.c": "1"}
    new = {X86: "2", "mm/gup.c": "2", "virt/kvm/new.c": "1", "same.c": "1"}
    found = difference(old, new)
    assert found.kvm == (X86, "virt/kvm/new.c")
    assert found.other == ("mm/gone.c", "mm/gup.c")


def test_outside_git_new_files_count_if_they_are_kvms_or_headers() -> None:
    files = {"a.c": "1", "new.c": "1", "include/linux/new.h": "1", "virt/kvm/new.c": "1"}
    kept = without_strangers(files, {"a.c": "1"})
    assert kept.keys() == {"a.c", "include/linux/new.h", "virt/kvm/new.c"}


def test_a_link_to_a_directory_is_a_file_of_the_source(tree: Path) -> None:
    (tree / "scripts/prefix").symlink_to("../include")
    assert "scripts/prefix" in files_of(tree)
    assert manifest(tree, ["scripts/prefix"]) == {"scripts/prefix": "-> ../include"}


def test_a_link_differs_from_a_file_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    found = manifest(tmp_path, ["file", "link"])
    assert found["file"] != found["link"]


def test_the_structs_that_others_look_into_are_found(tree: Path) -> None:
    assert shared_structs(tree) == PMU.rstrip("\n")


def test_a_release_candidate_has_a_version(tree: Path) -> None:
    write(tree, {"Makefile": MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc3")})
    assert version_in(tree) == "6.6.6-rc3"


@pytest.mark.parametrize(
    ("version", "suite"), [("6.1.0-50-cloud", "bookworm"), ("6.12.1", "trixie")]
)
def test_old_kernels_get_an_old_compiler(version: str, suite: str) -> None:
    assert buildroot.suite_for(version) == suite


# --- the configuration --------------------------------------------------------------------


def test_an_option_can_be_for_some_versions_only(tmp_path: Path) -> None:
    write(tmp_path, {"a.config": "# why\n#: from 6.8\n#: until 7.1\nCONFIG_A=y\nCONFIG_B=y\n"})
    options = configuration.load(tmp_path)

    def names(*version: int) -> list[str]:
        return [option.name for option in configuration.wanted_for(options, version)]

    assert names(6, 7, 9) == ["CONFIG_B"]
    assert names(6, 8, 0) == names(7, 1, 5) == ["CONFIG_A", "CONFIG_B"]
    assert names(7, 2, 0) == ["CONFIG_B"]


@pytest.mark.parametrize("line", ["CONFIG_A", "#CONFIG_A=y", "A=y", "CONFIG_A=y # why"])
def test_a_line_that_is_no_option_is_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path, {"a.config": f"{line}\n"})
    if line == "CONFIG_A=y # why":
        assert configuration.load(tmp_path)[0].value == "y # why"  # Kconfig will not take it
        return
    with pytest.raises(ValueError, match=r"a\.config: neither an option nor a comment"):
        configuration.load(tmp_path)


def test_options_that_came_out_otherwise_are_named_all_at_once() -> None:
    options = [
        Option("CONFIG_A", "y", "a.config"),
        Option("CONFIG_B", "m", "b.config"),
        Option("CONFIG_C", "y", "c.config"),
    ]
    with pytest.raises(SetupError) as caught:
        configuration.check(options, "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\n")
    assert "CONFIG_B=m (b.config; there it is y)" in str(caught.value)
    assert "CONFIG_C=y (c.config; not there)" in str(caught.value)
    assert "CONFIG_A" not in str(caught.value)


def test_every_option_of_the_project_is_asked_for_once_and_has_a_reason() -> None:
    options = configuration.load()
    names = [option.name for option in options]
    assert len(names) == len(set(names))
    assert {"CONFIG_KVM", "CONFIG_FUSE_DAX", "CONFIG_PVPANIC", "CONFIG_HIST_TRIGGERS"} <= set(names)
    for path in configuration.FRAGMENTS.glob("*.config"):
        assert path.read_text().startswith("# "), f"{path} does not say what it is for"


# --- the build root -----------------------------------------------------------------------

BWRAP = """#!/bin/sh
while :; do
    case $1 in
    --bind) if [ "$3" = /src ]; then tree=$2; fi; shift 3 ;;
    --ro-bind | --setenv) shift 3 ;;
    --dev | --proc | --tmpfs | --chdir) shift 2 ;;
    --*) shift ;;
    *) break ;;
    esac
done
cd "$tree" && exec "$@"
"""


@pytest.fixture
def entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], str]:
    """Runs a line of shell in a build root whose bubblewrap is a stand-in."""
    stand_in = tmp_path / "bin/bwrap"
    write(tmp_path, {"bin/bwrap": BWRAP})
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:/usr/bin:/bin")
    (tmp_path / "tree").mkdir()
    root = BuildRoot("suite", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")

    def enter(line: str, patience: float = 10.0) -> str:
        return root.run(tmp_path / "tree", ["sh", "-c", line], what="a try", patience=patience)

    return enter


def test_a_program_runs_in_the_tree(entered: Callable[[str], str], tmp_path: Path) -> None:
    assert "hello" in entered("echo hello; touch here")
    assert (tmp_path / "tree/here").exists()


def test_a_failed_build_shows_the_compilers_lines(entered: Callable[[str], str]) -> None:
    with pytest.raises(LaunchError) as caught:
        entered("seq 1000; echo 'a.c:1:2: error: no such thing' >&2; exit 2")
    assert caught.value.code == 2
    assert caught.value.argv[0] == "sh"  # what failed, not how the build root was entered
    assert caught.value.log_tail == "a.c:1:2: error: no such thing"


def test_a_machine_that_allows_no_build_root_is_not_the_sources_fault(
    entered: Callable[[str], str],
) -> None:
    with pytest.raises(SetupError, match=r"may not make a build root(?s:.)*No permissions"):
        entered("echo bwrap: No permissions to create a new namespace; exit 1")


def test_a_build_that_hangs_is_ended_and_says_how_far_it_came(
    entered: Callable[[str, float], str],
) -> None:
    with pytest.raises(LaunchError, match=r"still running after 1 s(?s:.)*so far"):
        entered("echo so far; exec sleep 1000", 1.0)


def test_a_build_enters_with_neither_network_nor_the_persons_settings(tmp_path: Path) -> None:
    root = BuildRoot("suite", tmp_path / "root", "gcc 14\n", tmp_path / "ccache")
    argv = root.argv(tmp_path / "tree", ["make"])
    assert argv[0].endswith("bwrap")
    assert {"--unshare-all", "--clearenv", "--die-with-parent"} <= set(argv)
    assert "--share-net" not in argv
    assert argv[-1] == "make"


def test_of_a_compilers_output_the_errors_are_shown_with_their_source_lines() -> None:
    assert error_lines(ERRORS).splitlines() == [
        "/src/include/linux/hashtable.h:61:30: error: passing argument 2 from incompatible pointer"
        " type",
        "   61 |         hlist_add_head(node, &hashtable[key])",
        "      |                              ^~~~~~~~~~~~~~~",
        "make[3]: *** [/src/scripts/Makefile.build:295: apf_error.o] Error 1",
        "make[3]: *** Waiting for unfinished jobs....",
    ]


@pytest.mark.parametrize(
    "line",
    [
        'ERROR: modpost: "kvm_missing" [kvm.ko] undefined!',
        "x86.c:(.text+0x12): undefined reference to `nothing'",
        "x86.c:3:10: fatal error: none.h: No such file or directory",
        "cc1: internal compiler error: Killed signal terminated program cc1",
        "write error: No space left on device",
    ],
)
def test_errors_of_every_kind_are_found(line: str) -> None:
    assert error_lines(f"noise\n{line}\nnoise\n") == line


def test_output_without_errors_is_shown_from_its_end() -> None:
    assert error_lines("\n".join(map(str, range(100))), limit=3) == "97\n98\n99"


def test_many_errors_are_cut_short() -> None:
    shown = error_lines("\n".join(f"a.c:{n}:1: error: x" for n in range(50)), limit=10).splitlines()
    assert len(shown) == 11
    assert shown[-1] == "... and 40 lines more"


def test_versions_are_read_from_what_dpkg_knows() -> None:
    status = "Package: gcc\nStatus: ok\nVersion: 4:14.2\n\nPackage: make\nVersion: 4.4\nX: y\n\n"
    assert buildroot.versions(status, ("gcc", "make", "pahole")) == (
        "gcc 4:14.2\nmake 4.4\npahole absent\n"
    )


def test_a_module_without_a_build_id_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kvm.ko").write_bytes(b"\x7fELF")
    with pytest.raises(HostfaultError, match="has no build id"):
        kvm_only.build_id(tmp_path / "kvm.ko")


@pytest.mark.parametrize(
    "name",
    [
        "kernel/bounds.c",
        "kernel/sched/rq-offsets.c",
        "kernel/time/timeconst.bc",
        "virt/kvm/async_pf.c",
    ],
)
def test_what_a_base_is_prepared_with_is_kept(name: str) -> None:
    assert not packaged._NOT_NEEDED.match(name)


def test_most_of_the_kernel_is_not_needed_for_its_kvm() -> None:
    assert packaged._NOT_NEEDED.match("drivers/net/tun.c")
