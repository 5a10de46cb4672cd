"""The fork that is loaded while a case runs: who gets it, and what becomes of one left over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hostfault.host.ahead import Ahead
from hostfault.plumbing.errors import HostfaultError

Load = Callable[[ExitStack, Path], str]


class Forks:
    """Makes forks that leave a log, and counts those that live."""

    def __init__(self) -> None:
        self.living = 0
        self.threads: set[int] = set()

    def load(self, stack: ExitStack, logs: Path) -> str:
        self.threads.add(threading.get_ident())
        (logs / "log").write_text("loaded")
        self.living += 1
        stack.callback(self._end)
        return "a fork"

    def load_in_vain(self, stack: ExitStack, logs: Path) -> str:
        self.load(stack, logs)
        raise HostfaultError("it does not load")

    def _end(self) -> None:
        self.living -= 1


@pytest.fixture
def forks() -> Forks:
    return Forks()


@pytest.fixture
def ahead() -> Iterator[Ahead[str]]:
    with Ahead[str]() as ahead:
        yield ahead


ONE, OTHER = Path("/cache/one"), Path("/cache/other")


def take(ahead: Ahead[str], entry: Path, stack: ExitStack, tmp_path: Path) -> str | None:
    folder = tmp_path / "case"
    folder.mkdir(exist_ok=True)
    return ahead.take(entry, stack, folder)


def test_a_fork_lives_until_its_case_is_over_and_its_logs_are_the_case_s(
    ahead: Ahead[str], forks: Forks, tmp_path: Path
) -> None:
    ahead.begin(ONE, tmp_path, forks.load)
    with ExitStack() as case:
        assert take(ahead, ONE, case, tmp_path) == "a fork"
        assert forks.living == 1
        assert threading.get_ident() not in forks.threads
    assert forks.living == 0
    assert (tmp_path / "case" / "log").read_text() == "loaded"
    assert [each.name for each in tmp_path.iterdir()] == ["case"]


@pytest.mark.parametrize("load", ["load", "load_in_vain"])
def test_a_case_of_another_snapshot_or_after_a_failure_gets_none(
    ahead: Ahead[str], forks: Forks, tmp_path: Path, load: str
) -> None:
    ahead.begin(ONE if load == "load_in_vain" else OTHER, tmp_path, getattr(forks, load))
    with ExitStack() as case:
        assert take(ahead, ONE, case, tmp_path) is None
        assert forks.living == 0
    assert not list((tmp_path / "case").iterdir())


def test_what_nobody_takes_ends_with_the_session(forks: Forks, tmp_path: Path) -> None:
    with Ahead[str]() as ahead:
        ahead.begin(ONE, tmp_path, forks.load)
        ahead.begin(OTHER, tmp_path, forks.load)
    assert forks.living == 0
    assert not list(tmp_path.iterdir())


def test_there_is_none_unless_one_was_begun(ahead: Ahead[str], tmp_path: Path) -> None:
    with ExitStack() as case:
        assert take(ahead, ONE, case, tmp_path) is None
