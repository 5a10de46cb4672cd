"""The cells of a set of ci/matrix.toml: ``--set NAME``."""

import pytest

from hostfault.plugin import sets
from hostfault.plugin.cases import Case, case_id


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each cell."""
    cells = sets.load().scenarios(metafunc.config.getoption("--set"))
    metafunc.parametrize("scenario", cells, ids=case_id)


def test_cell(case: Case) -> None:
    case.must_be_right()
