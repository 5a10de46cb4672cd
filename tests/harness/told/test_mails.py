"""A series as mails: on a made-up source, whose patches a git of our own makes and takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hostfault.kernel import series
from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.told import mails, write
from hostfault.told.plan import CELLS, PLAIN_QEMU

FILE = "virt/kvm/made_up.c"
TEXT = "".join(f"int line_{number};\n" for number in range(20))
COVER = "KVM: Two lines\n\nWhat was measured:\n\n@outcomes@\n\nThat is all.\n"
CELL = {
    "table": "outcomes",
    "kernel": "7.3.4",
    "policy": "stock",
    "verdict": "spin",
    "faults": 1234,
    "recovery": "goes-on",
    "again": "",
}


def git(place: Path, *words: str) -> str:
    who = ("-c", "user.name=A U Thor", "-c", "user.email=author@example.com")
    line = ["git", *who, *words]
    return subprocess.run(
        line, cwd=place, check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with one file."""
    (tmp_path / "source" / FILE).parent.mkdir(parents=True)
    (tmp_path / "source" / FILE).write_text(TEXT)
    return tmp_path / "source"


@pytest.fixture
def patches(tmp_path: Path, source: Path) -> list[Path]:
    """Two patches of it, each with a reason."""
    place = tmp_path / "author"
    place.mkdir()
    subprocess.run(["cp", "-r", f"{source}/.", place], check=True, timeout=60)
    git(place, "init", "-q")
    git(place, "add", "-A")
    git(place, "commit", "-qm", "base")
    for number in (3, 12):
        file = place / FILE
        file.write_text(file.read_text().replace(f"line_{number};", f"line_{number} = 1;"))
        git(place, "commit", "-qam", f"KVM: Change line {number}\n\nBecause of that.", "-s")
    said = git(place, "format-patch", "-q", "-o", str(tmp_path / "patches"), "-2")
    assert said == ""
    return sorted((tmp_path / "patches").iterdir())


def test_git_am_takes_what_is_written(source: Path, patches: list[Path], tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    subprocess.run(["cp", "-r", source, fresh], check=True, timeout=60)
    written = mails.write(source, patches, "", tmp_path / "out", "made up")
    git(fresh, "init", "-q")
    git(fresh, "add", "-A")
    git(fresh, "commit", "-qm", "base")
    git(fresh, "am", "-q", *map(str, written))
    changed = TEXT.replace("line_3;", "line_3 = 1;").replace("line_12;", "line_12 = 1;")
    assert (fresh / FILE).read_text() == changed
    assert git(fresh, "log", "--format=%an: %s", "-2").splitlines() == [
        "A U Thor: KVM: Change line 12",
        "A U Thor: KVM: Change line 3",
    ]


def test_the_cover_letter_comes_first_with_its_figures_and_no_blank_forms(
    source: Path, patches: list[Path], tmp_path: Path
) -> None:
    cover = mails.filled(COVER, [CELL])
    written = mails.write(source, patches, cover, tmp_path / "out", "made up")
    text = written[0].read_text()
    assert [path.name[:4] for path in written] == ["0000", "0001", "0002"]
    assert "Subject: [RFC PATCH 0/2] KVM: Two lines\n" in text
    assert "  7.3.4  stock  spin, 1234 faults and counting; page given back: goes-on\n" in text
    assert "***" not in text
    assert f"{FILE} | 4 ++--" in text


def test_cases_on_qemus_are_told_apart_by_what_they_lack() -> None:
    case = {"table": "qemus", "backing": "ram", "fault": "zero", "access": "store"}
    whole = {**CELL, **case, "kernel": "7.3.4+ours", "qemu": "10.0+ours"}
    lacking = [{**whole, "kernel": "7.3.4"}, {**whole, "qemu": PLAIN_QEMU}]
    rows = mails.filled("@qemus@\n", [whole, *lacking]).splitlines()
    assert len({row.partition("  stock")[0].strip() for row in rows}) == 3
    assert all("ram, zero, store" in row for row in rows)


def test_a_cover_letter_without_its_data_is_an_error() -> None:
    with pytest.raises(SetupError, match="no data for the table outcomes"):
        mails.filled(COVER, [])


def test_a_patch_that_does_not_apply_is_an_error_that_names_the_source(
    source: Path, patches: list[Path], tmp_path: Path
) -> None:
    (source / FILE).write_text("int another;\n")
    with pytest.raises(SetupError, match="does not apply to Linux 1"):
        mails.write(source, patches, "", tmp_path / "out", "Linux 1")


def test_a_directory_that_holds_something_is_left_alone(
    source: Path, patches: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "0001-mine.patch").touch()
    with pytest.raises(UsageError, match="not an empty directory"):
        mails.write(source, patches, "", out, "made up")
    assert [path.name for path in out.iterdir()] == ["0001-mine.patch"]


def test_files_are_taken_out_of_a_source_archive_by_name(source: Path, tmp_path: Path) -> None:
    (source / "Makefile").touch()
    archive = tmp_path / "linux.tar.xz"
    line = ["tar", "-C", str(source.parent), "-cJf", str(archive), "source"]
    subprocess.run(line, check=True, timeout=60)
    mails.extract(archive, {FILE, "not/there.c"}, tmp_path / "tree")
    found = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert found == [tmp_path / "tree" / FILE]


def test_the_series_that_tells_user_space_has_a_cover_letter_that_the_data_fill() -> None:
    fit = series.load()["tell-user-space"].fits[0]
    cover = mails.cover_of(fit.posted[0])
    assert "@outcomes@" not in cover
    assert "7.3.4+tell-user-space" in cover
    assert {fit.posted[0].name, fit.posted[-1].name} == {
        "0001-have-a-name.patch",
        "0006-document-it.patch",
    }


def test_the_data_are_of_cells_that_there_are() -> None:
    cells = json.loads(mails.DATA.read_text())
    assert {cell["cell"] for cell in cells} <= {cell.key for cell in CELLS}
    assert len({cell["cell"] for cell in cells}) == len(cells)


def test_keys_are_unique_and_results_come_back_from_json(tmp_path: Path) -> None:
    assert len({cell.key for cell in CELLS}) == len(CELLS)
    kept = tmp_path / "results.jsonl"
    fields = {"command": "c", "verdict": "spin", "summary": "s", "told": 1, "faults": 2}
    rest = {"cpu_share": 0.5, "guest_answers": True, "recovery": "", "again": "value 0x0"}
    deed = {"did": "held", "number": 1, "gpa": 4096, "flags": 1, "tries": 4, "words": ""}
    whole = {"cell": CELLS[0].key, **fields, **rest, "deeds": [deed]}
    kept.write_text(
        json.dumps({**whole, "verdict": "older"}) + "\n" + json.dumps(whole) + '\n{"cell": "cut'
    )
    (found,) = write.load(kept)
    assert write.as_json(found) | whole == write.as_json(found)
    assert found.deeds[0].tries == 4
