"""The sets of ci/matrix.toml: what they hold, and what they leave out."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from hostfault.access import ACCESSES
from hostfault.backing import BACKINGS
from hostfault.case.model import Scenario
from hostfault.condition import CONDITIONS
from hostfault.fault import FAULTS, require
from hostfault.plugin import sets
from hostfault.plugin.cases import case_id
from hostfault.plumbing.errors import UsageError

PROJECT = Path(__file__).parents[3]
ONE_CELL = """
[sets.one]
summary = "one"
[[sets.one.cells]]
backings = ["ram"]
faults = ["none"]
accesses = ["load", "sendfile"]
async_pf = [true]
[[impossible]]
backings = ["ram"]
accesses = ["sendfile"]
reason = "no file"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def matrix() -> sets.Matrix:
    return sets.load()


def test_the_set_dax_is_what_ci_dax_runs(matrix: sets.Matrix) -> None:
    line = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:shard", "tests/dax"]
    said = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    found = {each.partition("[")[2].rstrip("]") for each in said.splitlines() if "::" in each}
    assert found == {case_id(cell) for cell in matrix.scenarios("dax")}
    assert f"dax {len(found)}, quick" in said, "collecting prints the count of each set"


@pytest.mark.parametrize("name", sets.load().sets)
def test_each_configuration_of_a_set_comes_once(matrix: sets.Matrix, name: str) -> None:
    cells = matrix.scenarios(name)
    assert len(set(cells)) == len(cells) > 0
    groups = [key for key, _ in itertools.groupby((c.backing, c.async_pf, c.vcpus) for c in cells)]
    assert len(set(groups)) == len(groups)


def test_no_id_is_part_of_another_so_that_k_picks_one(matrix: sets.Matrix) -> None:
    ids = {case_id(cell) for name in matrix.sets for cell in matrix.scenarios(name)}
    assert "virtiofs-dax-zero-load-2vcpus-migrating-apf" in ids
    text = "\n".join(["", *ids, ""])
    assert not [each for each in ids if text.count(each) > 1]


def test_what_cannot_be_is_in_no_set_and_has_a_reason(matrix: sets.Matrix) -> None:
    assert all(not matrix.why_not(cell) for name in matrix.sets for cell in matrix.scenarios(name))
    gone = Scenario("virtiofs-dax", "zero", "cross", async_pf=True)
    assert matrix.why_not(gone) in {entry.reason for entry in matrix.impossible}
    assert "cannot have the fault guest" in matrix.why_not(Scenario("ram", "guest", "load", True))
    alone = Scenario("ram", "zero", "load", True, vcpus=1, condition="migrating")
    assert matrix.why_not(alone) == "migrating needs 2 vCPUs"


def test_every_reason_is_still_needed(matrix: sets.Matrix) -> None:
    names = [[each.name for each in kind] for kind in (BACKINGS, FAULTS, ACCESSES, CONDITIONS)]
    able = [
        (backing, fault, *more)
        for backing, fault, *more in itertools.product(*names)
        if not require(FAULTS[fault], BACKINGS[backing])
    ]
    for entry in matrix.impossible:
        assert any(entry.covers(*parts) for parts in able), entry.reason


def test_what_is_absent_has_a_reason_and_is_not_there(tmp_path: Path) -> None:
    absent = sets.load().absent
    assert {each.name for each in absent} >= {"guest_memfd"}
    assert all(each.reason for each in absent)
    there = '[[absent]]\nbacking = "ram"\nreason = "none"\n'
    with pytest.raises(UsageError, match="an absent backing is there"):
        sets.load(written(tmp_path, ONE_CELL + there))
    with pytest.raises(UsageError, match="an absent nothing"):
        sets.load(written(tmp_path, ONE_CELL + '[[absent]]\nreason = "none"\n'))


def test_quick_has_every_fault_and_every_access_that_ci_dax_and_ram_do_not(
    matrix: sets.Matrix,
) -> None:
    cells = (*matrix.scenarios("quick"), *matrix.scenarios("dax"))
    assert {cell.access for cell in cells} == {each.name for each in ACCESSES}
    # What the first three need takes a snapshot of its own; the others are in nightly.
    elsewhere = {"full", "hugetlb-empty", "eio", "hugetlb-limit", "memcg-oom"}
    elsewhere |= {"swapin-error", "uffd-poison", "uffd-served", "uffd-dead", "uffd-gone"}
    assert {cell.fault for cell in cells} | elsewhere == {each.name for each in FAULTS}
    assert {(c.backing, c.async_pf, c.vcpus) for c in matrix.scenarios("quick")} == {
        ("virtiofs-dax", True, 1)
    }, "one snapshot, which others have made"


def test_pairwise_leaves_out_no_pair_that_can_be(matrix: sets.Matrix) -> None:
    single, mine = [], []
    for cell in matrix.scenarios("full"):
        (mine if cell.vcpus > 1 else single).append(cell)
    able = [dataclasses.replace(cell, vcpus=vcpus) for cell in single for vcpus in (2, 4)]
    parts = ("backing", "fault", "access", "async_pf", "vcpus")
    for one, other in itertools.combinations(parts, 2):
        pairs = {(getattr(cell, one), getattr(cell, other)) for cell in mine}
        assert pairs == {(getattr(cell, one), getattr(cell, other)) for cell in able}
    assert len(mine) < len(matrix.scenarios("full")) / 2
    assert matrix.scenarios("full") == sets.load().scenarios("full"), "the same each time"


def test_a_block_that_names_little_stands_for_all(tmp_path: Path) -> None:
    found = sets.load(written(tmp_path, ONE_CELL))
    assert found.scenarios("one") == (Scenario("ram", "none", "load", async_pf=True),)
    assert found.counts() == {"one": 1}
    everything = ONE_CELL.replace('accesses = ["load", "sendfile"]\n', "")
    all_but_one = len(sets.load(written(tmp_path, everything)).scenarios("one"))
    assert all_but_one == len(list(ACCESSES)) - 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('faults = ["none"]', 'faults = ["fire"]', "there is no fault 'fire'"),
        ('faults = ["none"]', 'fault = ["none"]', "unknown words fault"),
        ('reason = "no file"', 'reason = "no file"\nkernels = ["6.1"]', "unknown words kernels"),
        ("async_pf = [true]", 'how = "some"', "neither product nor pairwise"),
    ],
)
def test_a_word_that_means_nothing_is_told(tmp_path: Path, old: str, new: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        sets.load(written(tmp_path, ONE_CELL.replace(old, new)))


def test_a_set_that_is_unknown_is_told_what_there_is(matrix: sets.Matrix) -> None:
    with pytest.raises(UsageError, match=r"'ful'.* dax, quick, ab, core, page, "):
        matrix.scenarios("ful")
