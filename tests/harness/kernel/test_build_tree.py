"""A source tree: which way is taken, what is compared, what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kernel_stand_ins import (
    CONFIG,
    HOST,
    KCONFIG,
    MAKEFILE,
    RELEASE,
    SOURCE,
    X86,
    FakeRoot,
    identity_of,
    write,
)

from hostfault.case.model import Kernel
from hostfault.kernel import build
from hostfault.kernel.source import manifest
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import SetupError, UsageError


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
        (KCONFIG, "config KVM\n\ttristate\n\nconfig KVM_FOO\n\tdef_bool y\n"),
        ("include/linux/kvm_types.h", "typedef long gfn_t;\n"),
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
    for old, new in (("u64 counters", "u32 counters"), ("MAX_COUNTERS 8", "MAX_COUNTERS 9")):
        write(tree, {HOST: SOURCE[HOST].replace(old, new)})
        _, said = resolve_tree(tree, cache)
        assert "whole kernel: a struct of KVM's headers" in said


def test_an_older_whole_kernel_with_another_such_struct_is_not_taken(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"mm/gup.c": "int other;\n"})
    resolve_tree(tree, cache)
    write(tree, {HOST: SOURCE[HOST].replace("u64 counters", "u32 counters")})
    resolve_tree(tree, cache)
    assert sum("bzImage" in call for call in root.calls) == 2


def test_an_older_whole_kernel_with_other_options_of_kvm_is_not_taken(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    write(tree, {"mm/gup.c": "int other;\n"})
    resolve_tree(tree, cache)
    write(tree, {KCONFIG: "config KVM_FOO\n\tdef_bool y\n", X86: "int foo;\n"})
    _, said = resolve_tree(tree, cache)
    assert "KVM only" not in said
    assert sum("bzImage" in call for call in root.calls) == 2


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


def test_the_kconfig_files_decide_which_options_a_commit_has(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    def configured() -> set[str]:
        resolve_tree(tree, cache)
        configs = (cache.root / "whole-kernels").glob("*/tree/.config")
        return {line for path in configs for line in path.read_text().splitlines()}

    write(
        tree,
        {"mm/gup.c": "int other;\n", "Makefile": MAKEFILE.replace("VERSION = 6", "VERSION = 9")},
    )
    assert "CONFIG_KVM_IOAPIC=y" not in configured(), "a new version, but an old topic branch"
    write(tree, {KCONFIG: "config KVM_IOAPIC\n\tbool\n", "Makefile": MAKEFILE})
    assert "CONFIG_KVM_IOAPIC=y" in configured()


def configure(tree: Path, options: str) -> None:
    write(tree, {".config": f"#\n# Linux/x86 6.6.6 Kernel Configuration\n#\n{options}"})


def test_a_tree_with_the_packaged_configuration_gets_kvm_only(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    configure(tree, f'CONFIG_CC_VERSION_TEXT="gcc 15"\n{CONFIG}# CONFIG_KASAN is not set\n')
    _, said = resolve_tree(tree, cache)
    assert f"KVM only: differs from {RELEASE} in nothing" in said


def test_a_tree_with_a_configuration_of_its_own_gets_a_whole_kernel(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    configure(tree, f"{CONFIG}CONFIG_KASAN=y\nCONFIG_LOCKDEP=y\n")
    _, said = resolve_tree(tree, cache)
    assert f"whole kernel: its .config differs from {RELEASE}'s in CONFIG_KASAN and 1 more" in said
    config = next((cache.root / "whole-kernels").glob("*/tree/.config")).read_text()
    assert "CONFIG_KASAN=y" in config


def test_a_whole_kernel_may_compress_its_modules(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path
) -> None:
    configure(tree, "CONFIG_MODULE_COMPRESS=y\n")
    kernel, _ = resolve_tree(tree, cache)
    assert [path.name for path in kernel.modules.rglob("kvm.ko*")] == ["kvm.ko.xz"]
    assert kernel.build_id == identity_of(SOURCE)


def test_a_kernel_without_a_module_kvm_is_an_error_that_says_where_to_look(
    cache: Cache,
    root: FakeRoot,
    mirror: list[str],
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeRoot, "_modules", lambda *_: None)
    write(tree, {"mm/gup.c": "int other;\n"})
    with pytest.raises(SetupError, match=r"without a module kvm\.ko(?s:.)*CONFIG_KVM in"):
        resolve_tree(tree, cache)


def test_kvm_that_can_only_be_built_in_is_told_before_anything_is_compiled(
    cache: Cache, root: FakeRoot, mirror: list[str], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picky = FakeRoot("suite", root.root, "gcc 14\n", root.ccache, dropped="CONFIG_KVM=m")
    monkeypatch.setattr(build, "build_root", lambda cache, suite: picky)
    configure(tree, "CONFIG_KVM=y\n")
    with pytest.raises(SetupError, match=r"CONFIG_KVM=m \(30-kvm\.config; there it is y\)"):
        resolve_tree(tree, cache)
    assert not any("bzImage" in call for call in picky.calls)


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
