"""Private directories: what is removed of other runs, and what is left alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from hostfault.plumbing import short_directory as module
from hostfault.plumbing.short_directory import short_directory, sweep_short_directories


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "PARENT", tmp_path)
    return tmp_path


def left_behind(parent: Path, name: str) -> Path:
    """What a run that was killed leaves: its lock is nobody's."""
    path = parent / name
    path.mkdir()
    (path / ".in-use").touch()
    return path


def test_it_is_private_and_removed_at_the_end(parent: Path) -> None:
    with short_directory() as path:
        assert path.parent == parent
        assert path.stat().st_mode & 0o777 == 0o700
    assert not path.exists()


def test_what_a_killed_run_left_is_removed(parent: Path) -> None:
    left = left_behind(parent, "hostfault-dead")
    sweep_short_directories(parent)
    assert not left.exists()


def test_a_directory_in_use_stays_whatever_process_uses_it(parent: Path) -> None:
    with short_directory() as path:
        sweep_short_directories(parent)
        assert path.is_dir()


def test_another_users_directory_stays_and_hurts_nobody(parent: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    other = left_behind(parent, "hostfault-4000002-evil")
    os.chown(other, 12345, 12345)
    sweep_short_directories(parent)
    assert other.is_dir()


def test_a_link_and_a_directory_without_a_lock_stay(parent: Path) -> None:
    target = left_behind(parent, "elsewhere")
    (parent / "hostfault-link").symlink_to(target)
    (parent / "hostfault-other").mkdir()
    sweep_short_directories(parent)
    assert {path.name for path in parent.iterdir()} == {
        "elsewhere",
        "hostfault-link",
        "hostfault-other",
    }


def test_a_lock_that_another_run_takes_first_is_its_business(parent: Path) -> None:
    left = left_behind(parent, "hostfault-contended")
    lock = os.open(left / ".in-use", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sweep_short_directories(parent)
    assert left.is_dir()
    os.close(lock)


def test_one_that_is_swept_before_it_is_locked_is_made_again(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            swept.append(descriptor)
            sweep_short_directories(parent)  # as another run of this user may at any time
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    with short_directory() as path:
        assert swept
        assert path.is_dir()


def test_what_cannot_be_removed_stops_nobody(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = left_behind(parent, "hostfault-stuck")
    failing = parent / "bin"
    failing.mkdir()
    (failing / "rm").write_text("#!/bin/sh\nexit 1\n")
    (failing / "rm").chmod(0o755)
    monkeypatch.setenv("PATH", str(failing), prepend=":")
    sweep_short_directories(parent)
    assert left.is_dir()
