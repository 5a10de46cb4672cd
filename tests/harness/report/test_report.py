"""Artifacts, records and the table: what people and machines find after a run."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from hostfault.case import known_issues as known
from hostfault.case.model import (
    Kernel,
    Qemu,
    Scenario,
    Verdict,
    VerdictKind,
    observation_from_json,
)
from hostfault.case.record import LabFacts, Record
from hostfault.case.settings import Settings
from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.report import artifacts
from hostfault.report.artifacts import Artifacts, write_json
from hostfault.report.table import Row, header, render
from hostfault.report.verdict_json import properties, verdict_json

OBSERVATION = observation_from_json(
    json.loads((Path(__file__).parents[2] / "observations/spin.apf-7.3.4.json").read_text())
)
STOCK = Kernel("7.3", "7.3.4+deb13-cloud-amd64", Path("/k/bzImage"), Path("/k/modules"), True)
QEMU = Qemu("image", "11.1.3", ("qemu",))
SPIN = Verdict(VerdictKind.SPIN, "64 faults on gfn 0xf8000", ("tracepoint: 64", "stats: 65"))
CASE = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
FACTS = LabFacts("emulated", "no usable /dev/kvm: absent", STOCK, STOCK.release, STOCK, QEMU)


def record(verdict: Verdict = SPIN, settings: Settings | None = None) -> Record:
    return Record(
        test="t.py::t[x]",
        facts=FACTS,
        settings=settings or Settings(),
        observation=OBSERVATION,
        verdict=verdict,
        phases={"guest boot": 4.8123},
        cached=True,
        issue=known.match(known.load(), STOCK, CASE),
        folder=Path("/a/t-x"),
    )


# --- artifacts ---


def test_a_run_makes_no_directory_until_a_test_needs_one(tmp_path: Path) -> None:
    store = Artifacts(Settings(), tmp_path)
    assert store.directory is None
    assert list(tmp_path.iterdir()) == []


def test_every_run_has_a_directory_of_its_own_and_last_points_to_the_newest(
    tmp_path: Path,
) -> None:
    first, second = Artifacts(Settings(), tmp_path), Artifacts(Settings(), tmp_path)
    folders = [store.folder("test_x[a-b]") for store in (first, second)]
    assert [folder.name for folder in folders] == ["test_x-a-b"] * 2
    assert first.directory != second.directory
    assert (tmp_path / ".hostfault/runs/last").resolve() == second.directory


def test_two_tests_of_one_name_keep_a_folder_each(tmp_path: Path) -> None:
    store = Artifacts(Settings(), tmp_path)
    one, two = store.folder("test_x"), store.folder("test_x")
    assert (one.name, two.name) == ("test_x", "test_x_2")
    assert one.is_dir()


def test_a_test_name_cannot_leave_the_directory(tmp_path: Path) -> None:
    store = Artifacts(Settings(), tmp_path)
    folder = store.folder("test[../../etc]")
    assert folder.parent == store.directory


def test_artifacts_go_where_the_person_wants_them(tmp_path: Path) -> None:
    wanted = tmp_path / "new" / "place"
    store = Artifacts(Settings(artifacts=wanted), tmp_path)
    assert store.folder("test_x") == wanted / "test_x"
    assert not (tmp_path / ".hostfault").exists()


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not empty.*--artifacts-overwrite"):
        artifacts.check(Settings(artifacts=tmp_path))


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    artifacts.check(Settings(artifacts=tmp_path))


def test_a_file_is_refused_as_a_directory(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(UsageError, match="is not a directory"):
        artifacts.check(Settings(artifacts=place, overwrite=True))


@pytest.mark.parametrize("place", ["/etc/passwd/x", "/proc/nope", f"/tmp/{'x' * 300}"])
def test_a_place_where_nothing_can_be_made_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match=f"{place}: .*; name a directory that you may write to"):
        artifacts.check(Settings(artifacts=Path(place)))


def test_a_directory_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # root is never refused
    with pytest.raises(UsageError, match="Permission denied; name a directory"):
        artifacts.check(Settings(artifacts=tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_checking_a_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    artifacts.check(Settings(artifacts=tmp_path / "old"))
    artifacts.check(Settings(artifacts=tmp_path / "new" / "place"))
    assert [path.name for path in tmp_path.rglob("*")] == ["old"]


def test_overwriting_replaces_the_folders_of_the_tests_that_run_and_no_other_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_x").mkdir()
    (tmp_path / "test_x" / "old").touch()
    (tmp_path / "thesis.tex").touch()
    settings = Settings(artifacts=tmp_path, overwrite=True)
    artifacts.check(settings)
    assert list(Artifacts(settings, tmp_path).folder("test_x").iterdir()) == []
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / ".hostfault").touch()
    with pytest.raises(SetupError, match=r"no folder for the artifacts of test_x.*--artifacts DIR"):
        Artifacts(Settings(), tmp_path).folder("test_x")


def test_a_json_file_is_whole_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "verdict.json"
    with pytest.raises(TypeError):
        write_json(target, {"good": 1, "bad": object()})
    assert list(tmp_path.iterdir()) == []
    write_json(target, {"good": 1})
    assert json.loads(target.read_text()) == {"good": 1}


# --- records ---


def test_the_verdict_file_has_everything_that_names_the_case() -> None:
    data = json.loads(json.dumps(verdict_json(record())))
    assert data["verdict"] == "spin"
    assert data["summary"] == SPIN.summary
    assert data["accepted"] is False
    assert data["known_issue"] == "kvm-apf-error"
    assert data["test"] == "t.py::t[x]"
    assert (data["host_kind"], data["host_release"]) == ("emulated", STOCK.release)
    assert data["host_kernel"]["packaged"] is True
    assert data["guest_kernel"]["release"] == STOCK.release
    assert data["qemu"]["version"] == "11.1.3"
    assert (data["backing"], data["fault"], data["access"]) == ("virtiofs-dax", "zero", "load")
    assert (data["async_pf"], data["vcpus"]) == (True, 1)
    assert data["options"]["accept"] == "vm"
    assert data["seconds"] == {"guest boot": 4.812}
    assert data["cached"] is True
    assert data["evidence"] == list(SPIN.evidence)


def test_the_junit_properties_carry_the_same_as_flat_text() -> None:
    flat = dict(properties(record()))
    assert flat["verdict"] == "spin"
    assert flat["host_kernel.release"] == STOCK.release
    assert flat["seconds.guest boot"] == "4.812"
    assert flat["evidence"] == "tracepoint: 64\nstats: 65"
    assert flat["artifacts"] == "/a/t-x"


def test_a_failure_shows_verdict_evidence_and_where_the_rest_is() -> None:
    text = record().in_full()
    assert text.startswith("SPIN: 64 faults on gfn 0xf8000\n")
    assert "  stats: 65" in text
    assert text.endswith("artifacts: /a/t-x")


@pytest.mark.parametrize("kind", VerdictKind)
def test_only_an_answer_to_the_access_is_accepted(kind: VerdictKind) -> None:
    verdict = Verdict(kind, "", ())
    told = {VerdictKind.TASK_ERROR, VerdictKind.OK}
    assert Settings(accept="task").accepts(verdict) is (kind in told)
    assert Settings(accept="vm").accepts(verdict) is (kind in told | {VerdictKind.VM_EXIT})


# --- the table ---

ROWS = [
    Row(CASE, "SPIN", "27,411 faults in 3.1 s", "known", "known issue: kvm-apf-error"),
    Row(
        Scenario("nvdimm", "middle", "store", async_pf=False),
        "TASK-ERROR",
        "SIGBUS",
        "good",
    ),
]


def test_the_header_says_which_host_and_why() -> None:
    assert header(FACTS) == (
        "host: emulated, Debian 7.3.4+deb13-cloud-amd64, QEMU 11.1.3   (no usable /dev/kvm: absent)"
    )


def test_the_header_names_a_guest_kernel_that_differs() -> None:
    facts = LabFacts("local", "", None, "6.5.0-own", STOCK, QEMU)
    assert header(facts) == ("host: local, 6.5.0-own, QEMU 11.1.3, guest 7.3.4+deb13-cloud-amd64")


def test_the_header_names_a_back_end_that_is_not_ours_and_the_evidence_has_its_sum() -> None:
    facts = replace(FACTS, back_end="/opt/virtiofsd (sha256 0123)")
    assert ", QEMU 11.1.3, back-end /opt/virtiofsd  " in header(facts)
    assert verdict_json(replace(record(), facts=facts))["back_end"] == facts.back_end
    assert verdict_json(record())["back_end"] == ""


def test_a_wide_terminal_shows_one_aligned_line_a_test() -> None:
    assert [line.text for line in render(ROWS, 200)] == [
        "virtiofs-dax  zero    load   async-pf     SPIN        27,411 faults in 3.1 s"
        "   known issue: kvm-apf-error",
        "nvdimm        middle  store  no-async-pf  TASK-ERROR  SIGBUS",
    ]


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_a_narrow_terminal_wraps_the_summary_and_loses_nothing(width: int) -> None:
    lines = [line.text for line in render(ROWS, width)]
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines).split())
    assert "27,411 faults in 3.1 s known issue: kvm-apf-error" in words


def test_every_line_of_a_test_has_its_colour() -> None:
    assert {line.tone for line in render(ROWS[:1], 60)} == {"known"}


def test_an_empty_table_has_no_lines() -> None:
    assert render([], 80) == []
