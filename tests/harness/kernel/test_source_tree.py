"""What a source tree is made of, and how two of them differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernel_stand_ins import HOST, KCONFIG, MAKEFILE, PMU, SOURCE, X86, write

from hostfault.kernel import buildroot
from hostfault.kernel.source import (
    difference,
    files_of,
    is_kvm,
    is_unused,
    manifest,
    options_in,
    shared_structs,
    version_in,
    without_strangers,
)
from hostfault.plumbing.errors import UsageError


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
        ("arch/x86/include/asm/kvm_page_track.h", True),
        ("arch/x86/kvm/Makefile", True),
        # nobody makes the configuration of a base anew
        ("arch/x86/kvm/Kconfig", False),
        ("virt/kvm/Kconfig", False),
        ("virt/kvm/new/Kconfig.debug", False),
        # what the kernel proper is compiled with
        ("include/linux/kvm_types.h", False),
        ("arch/x86/include/asm/kvm_types.h", False),
        ("arch/x86/include/uapi/asm/kvm.h", False),
        # the kernel as a guest of KVM
        ("arch/x86/include/asm/kvmclock.h", False),
        ("arch/x86/include/uapi/asm/kvm_para.h", False),
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
    assert shared_structs(tree) == f"{PMU}MAX_COUNTERS 8"


def test_what_sizes_an_array_in_them_belongs_to_them(tree: Path) -> None:
    macros = "#define MAX_COUNTERS MORE(2, \\\n\t\tTWO)\n#define TWO 2\n#define OTHER 3\n"
    write(tree, {HOST: SOURCE[HOST].replace("#define MAX_COUNTERS 8\n", macros)})
    found = shared_structs(tree)
    assert found == f"{PMU}MAX_COUNTERS MORE(2, \\\n\t\tTWO)\nTWO 2"


def test_a_source_without_their_header_has_none(tree: Path) -> None:
    (tree / HOST).unlink()
    assert shared_structs(tree) == ""


def test_options_are_found_in_every_kconfig_file_for_x86(tmp_path: Path) -> None:
    files = {
        KCONFIG: 'if A\n\n\tconfig KVM_IOAPIC # why\n\t\tbool "x"\nendif\n',
        "virt/kvm/Kconfig.debug": "menuconfig  MENU\n# config COMMENT\n\tdepends on config\n",
        "arch/arm/Kconfig": "config ARM\n",
        "arch/Kconfig": "config ARCH\n",
        "mm/gup.c": "config C\n",
    }
    write(tmp_path, files)
    found = options_in(tmp_path, files)
    assert found == {"CONFIG_KVM_IOAPIC", "CONFIG_MENU", "CONFIG_ARCH"}


def test_a_release_candidate_has_a_version(tree: Path) -> None:
    write(tree, {"Makefile": MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc3")})
    assert version_in(tree) == "6.6.6-rc3"


@pytest.mark.parametrize("sublevel", ["", "six"])
def test_a_makefile_with_half_a_version_is_no_kernels(tree: Path, sublevel: str) -> None:
    write(tree, {"Makefile": MAKEFILE.replace("SUBLEVEL = 6", f"SUBLEVEL = {sublevel}")})
    with pytest.raises(UsageError, match="its Makefile names no version"):
        version_in(tree)


@pytest.mark.parametrize(
    ("version", "suite"), [("6.1.0-50-cloud", "bookworm"), ("6.12.1", "trixie")]
)
def test_old_kernels_get_an_old_compiler(version: str, suite: str) -> None:
    assert buildroot.suite_for(version) == suite
