"""A program ends with the exit code that its trouble has, and names itself."""

from __future__ import annotations

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
