"""The bench tells what it measured, and does not take a wrong or a late answer for a figure."""

from __future__ import annotations

import daxfs_bench as bench
import pytest
from daxfs_bench import Figure

NAMES = (
    "read 4 KiB, 1 under way",
    "read 4 KiB, 32 under way",
    "read 128 KiB, 1 under way",
    "read 128 KiB, 32 under way",
    "map, unmap, 1 under way",
    "map, unmap, 32 under way",
)


def test_every_figure_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--scale", "0.02"]) in (0, 1)  # a busy machine may answer late
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in lines[1:7]] == list(NAMES)
    assert all(float(line.split("way")[1].split()[0]) > 10 for line in lines[1:7])


def test_another_back_end_is_measured_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = " ".join(bench.OURS[:4])
    theirs = ("--fd", "{fd}", "--shared", "{shared}", *bench.OURS_LOG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "THEIRS", theirs)
        assert bench.main(["--scale", "0.02", "--virtiofsd", command]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert "virtiofsd" in lines[0]
    assert lines[6].split()[-3:] == ["-", "-", "-"]  # it maps nothing


def test_a_back_end_that_does_not_start_is_trouble(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--scale", "0.01", "--virtiofsd", "false"]) == 2
    assert "ci/bench-back-end" in capsys.readouterr().err


def test_a_late_answer_is_a_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = Figure("read", 10, 1.0, 0.05, 0.101)
    monkeypatch.setattr(bench, "measured", lambda *_, **__: [late])
    assert bench.main([]) == 1
    assert "an answer took 101 ms" in capsys.readouterr().err


def test_a_rate_is_of_answers() -> None:
    assert Figure("read", 500, 2.0, 0.0, 0.0).rate == 250.0
