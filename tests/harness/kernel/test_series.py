"""Patch series: their table, the patches that come with the project, and applying them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostfault.kernel import series
from hostfault.kernel.source import is_kvm
from hostfault.plumbing.errors import SetupError, UsageError

OLD = "".join(f"line {number}\n" for number in range(1, 41))
PATCH = """\
--- a/arch/x86/kvm/x86.c
+++ b/arch/x86/kvm/x86.c
@@ -5,4 +5,4 @@ first
 line 5
-line 6
+line six
 line 7
 line 8
@@ -29,4 +29,4 @@ second
 line 29
-line 30
+line thirty
 line 31
 line 32
"""
TABLE = """
[[series]]
name = "one"
summary = "the first"
[[series.fits]]
first = "6.12"
last = "6.12"
patches = ["one/old.patch"]
[[series.fits]]
first = "7.2"
last = "7.3"
patches = ["one/new.patch", "one/more.patch"]

[[series]]
name = "two"
summary = "the second"
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "series.toml"
    path.write_text(
        TABLE.replace('summary = "the second"\n', 'summary = "the second"\nfits = []\n')
    )
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    file = tmp_path / "tree/arch/x86/kvm/x86.c"
    file.parent.mkdir(parents=True)
    file.write_text(OLD)
    return tmp_path / "tree"


@pytest.fixture
def patch(tmp_path: Path) -> Path:
    path = tmp_path / "0001-change.patch"
    path.write_text(PATCH)
    return path


@pytest.mark.parametrize(
    ("version", "patches"),
    [
        ((6, 12, 94), ["old.patch"]),
        ((7, 2, 0), ["new.patch", "more.patch"]),
        ((7, 3, 4), ["new.patch", "more.patch"]),
    ],
)
def test_a_series_has_patches_for_each_version_in_a_range(
    table: Path, version: tuple[int, ...], patches: list[str]
) -> None:
    found = series.find("one", table).patches_for(version)
    assert [path.name for path in found] == patches
    assert {path.parent for path in found} == {table.parent / "one"}


@pytest.mark.parametrize("version", [(6, 11, 99), (6, 13, 0), (7, 1, 9), (7, 4, 0)])
def test_a_version_outside_of_every_range_is_an_error_that_names_the_ranges(
    table: Path, version: tuple[int, ...]
) -> None:
    wanted = ".".join(map(str, version))
    with pytest.raises(UsageError, match=rf"one has no patches for {wanted}; .* 6.12, 7.2 to 7.3"):
        series.find("one", table).patches_for(version)


def test_an_unknown_series_lists_the_known_ones(table: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no patch series 'three'(?s:.)*one: the first\s+two: the"
    ):
        series.find("three", table)


def test_what_a_series_touches_is_read_from_its_patches(patch: Path) -> None:
    assert series.touched([patch]) == {"arch/x86/kvm/x86.c"}


def test_a_patch_is_applied(tree: Path, patch: Path) -> None:
    series.apply([patch], tree)
    text = (tree / "arch/x86/kvm/x86.c").read_text()
    assert text == OLD.replace("line 6\n", "line six\n").replace("line 30\n", "line thirty\n")


def test_a_patch_is_applied_at_an_offset(tree: Path, patch: Path) -> None:
    file = tree / "arch/x86/kvm/x86.c"
    file.write_text("new\n" * 7 + OLD)
    series.apply([patch], tree)
    assert "line thirty" in file.read_text()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "line 30\n",
            "line xxx\n",
            r"hunk 2 of arch/x86/kvm/x86\.c failed at line 29\s+@@ -29.*second",
        ),
        (
            "line 6\n",
            "line xxx\n",
            r"hunk 1 of arch/x86/kvm/x86\.c failed at line 5\s+@@ -5.*first",
        ),
        # context that differs would be fuzz: a patch that fits by accident proves nothing
        ("line 32\n", "line xxx\n", r"hunk 2 of arch/x86/kvm/x86\.c"),
    ],
)
def test_a_patch_that_does_not_apply_names_the_hunk(
    tree: Path, patch: Path, old: str, new: str, complaint: str
) -> None:
    file = tree / "arch/x86/kvm/x86.c"
    file.write_text(OLD.replace(old, new))
    with pytest.raises(SetupError, match=rf"0001-change\.patch does not apply: {complaint}"):
        series.apply([patch], tree)


def test_a_patch_of_a_file_that_is_not_there_says_so(tree: Path, patch: Path) -> None:
    (tree / "arch/x86/kvm/x86.c").unlink()
    with pytest.raises(
        SetupError, match=r"does not apply: arch/x86/kvm/x86\.c: not in this source$"
    ):
        series.apply([patch], tree)


def test_a_patch_may_make_a_new_file_that_the_next_one_changes(tree: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.patch", tmp_path / "2.patch"
    first.write_text("--- /dev/null\n+++ b/virt/kvm/new.c\n@@ -0,0 +1 @@\n+int one;\n")
    second.write_text(
        "--- a/virt/kvm/new.c\n+++ b/virt/kvm/new.c\n@@ -1 +1 @@\n-int one;\n+int two;\n"
    )
    series.apply([first, second], tree)
    assert (tree / "virt/kvm/new.c").read_text() == "int two;\n"


PROJECT = series.load()


def test_the_series_that_the_project_promises_are_there() -> None:
    promised = {"spin-on-purpose", "error-table", "exit-request", "fail-at-once"}
    assert promised <= PROJECT.keys()


@pytest.mark.parametrize("name", ["error-table", "exit-request", "fail-at-once", "tell-user-space"])
@pytest.mark.parametrize("version", [(7, 3, 4), (6, 12, 107)])
def test_each_fix_has_patches_for_both_kernels(name: str, version: tuple[int, ...]) -> None:
    assert PROJECT[name].patches_for(version)


@pytest.mark.parametrize("name", PROJECT)
def test_patches_change_nothing_but_kvm_and_say_why(name: str) -> None:
    for fit in PROJECT[name].fits:
        assert {file for file in series.touched(fit.patches) if not is_kvm(file)} == set()
        for patch in fit.patches:
            head, _, _ = patch.read_text().partition("\n---\n")
            assert re.search(r"^Subject: .*KVM: ", head, re.MULTILINE), patch
            assert re.search(r"^Signed-off-by: ", head, re.MULTILINE), patch
            assert len(head.splitlines()) > 12, f"{patch} does not say why"


def test_what_is_posted_has_all_that_is_built_in_the_same_order() -> None:
    for each in PROJECT.values():
        for fit in each.fits:
            assert [patch for patch in fit.posted if patch in fit.patches] == list(fit.patches)


def test_every_patch_file_belongs_to_a_series() -> None:
    listed = {patch for each in PROJECT.values() for fit in each.fits for patch in fit.posted}
    assert listed == set(series.SERIES.parent.rglob("*.patch"))
