"""A program ends with the exit code that its trouble has, and names itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from hostfault.plumbing.errors import SetupError, UsageError
from hostfault.plumbing.program import end_with


def raising(error: BaseException) -> int:
    raise error


def test_the_exit_code_of_main_is_the_programs() -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(lambda: 7, "ci/x", trouble=2)
    assert ended.value.code == 7


@pytest.mark.parametrize(
    ("error", "usage", "code"),
    [
        (SetupError("no mirror"), 4, 2),
        (UsageError("no mirror"), 4, 4),
        (UsageError("no mirror"), None, 2),
        (KeyboardInterrupt(), 4, 130),
    ],
)
def test_trouble_has_its_exit_code_and_the_programs_name(
    error: BaseException, usage: int | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        end_with(lambda: raising(error), "ci/x", trouble=2, usage=usage)
    assert ended.value.code == code
    said = capsys.readouterr().err.strip()
    assert said.startswith("ci/x: ")
    assert said.endswith(str(error))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_a_program_lets_it_clean_up(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), number)
        raise AssertionError("the signal did not end it")

    before = signal.signal(number, signal.SIG_DFL)  # nohup(1) may have had it ignored
    try:
        with pytest.raises(SystemExit) as ended:
            end_with(main, "ci/x", trouble=2, stopped="stopped in the middle")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 130
    assert list(tmp_path.iterdir()) == []
    assert "ci/x: stopped in the middle" in capsys.readouterr().err


def test_a_second_signal_does_not_disturb_the_clean_up(tmp_path: Path) -> None:
    def main() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            (tmp_path / "cleaned").touch()
        return 0

    with pytest.raises(SystemExit):
        end_with(main, "ci/x", trouble=2)
    assert (tmp_path / "cleaned").exists()


def test_a_signal_that_was_ignored_stays_so() -> None:
    def main() -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return 7

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup(1) leaves it
    try:
        with pytest.raises(SystemExit) as ended:
            end_with(main, "ci/x", trouble=2)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended.value.code == 7
