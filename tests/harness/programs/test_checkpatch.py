"""What ``ci/checkpatch`` finds; the kernel's own checkpatch.pl is played by a script."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault import checkpatch
from hostfault.kernel.catalog import load, newest
from hostfault.kernel.series import Fit, Series
from hostfault.plumbing.versions import range_of

PATCH = """\
--- a/virt/kvm/file.c
+++ b/virt/kvm/file.c
@@ -1,2 +1,2 @@
 one
-two
+{new}
"""
THESE = ".".join(newest().split(".")[:2])
JUDGE = """#!/usr/bin/perl
local $/; my $text = <STDIN> // ""; open(my $patch, "<", $ARGV[-1]); $text = <$patch>;
if ($text =~ /ugly/) { print "$ARGV[-1]:6: WARNING: ugly\\n"; exit 1; }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in (("virt/kvm/file.c", "one\ntwo\n"), ("scripts/checkpatch.pl", JUDGE)):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / name).write_text(text)
    return tmp_path / "tree"


def found(tree: Path, tmp_path: Path, patch: str, kernels: str = THESE) -> list[str]:
    """What there is to say against a series of one patch, which is for some kernels."""
    path = tmp_path / "0001.patch"
    path.write_text(patch)
    fit = Fit(range_of({"first": kernels, "last": kernels}), (path,))
    series = {"one": Series("one", "made up", (fit,))}
    return list(checkpatch.complaints(tree, load()[newest()], series))


def test_a_series_that_applies_and_has_no_style_problem_is_fine(tree: Path, tmp_path: Path) -> None:
    assert found(tree, tmp_path, PATCH.format(new="three")) == []
    assert (tree / "virt/kvm/file.c").read_text() == "one\ntwo\n", "the source stays as it is"


def test_a_style_problem_is_told_as_checkpatch_tells_it(tree: Path, tmp_path: Path) -> None:
    (line,) = found(tree, tmp_path, PATCH.format(new="ugly"))
    assert line.endswith("0001.patch:6: WARNING: ugly")


def test_a_series_that_does_not_apply_is_told_with_its_hunk(tree: Path, tmp_path: Path) -> None:
    patch = PATCH.format(new="three").replace("-two", "-four")
    (line,) = found(tree, tmp_path, patch)
    assert "one: " in line
    assert "hunk 1 of virt/kvm/file.c failed" in line


def test_a_series_without_patches_for_the_newest_kernel_is_told(tree: Path, tmp_path: Path) -> None:
    (line,) = found(tree, tmp_path, PATCH.format(new="three"), kernels="6.1")
    assert "series one has no patches for 7." in line
