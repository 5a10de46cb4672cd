"""The directory of a run, and in it one folder for each test."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hostfault.case.settings import Settings
from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.errors import SetupError, UsageError

RUNS = Path(".hostfault/runs")
PRIVATE = 0o700  # a host's kernel log is in there, which other users may not be allowed to read


def check(settings: Settings) -> None:
    """Raise :class:`UsageError` if the artifacts may not go where the person wants them.

    Leaves nothing behind: a run may end before any test asks for a folder.
    """
    target = settings.artifacts
    if target is None:
        return
    try:
        if target.exists() and not target.is_dir():
            raise UsageError(f"--artifacts {target}: is not a directory")
        if target.exists() and not settings.overwrite and any(target.iterdir()):
            raise UsageError(
                f"--artifacts {target}: is not empty; name another directory, "
                "or say --artifacts-overwrite"
            )
        _try_to_write(target)
    except OSError as error:
        raise UsageError(
            f"--artifacts {target}: {error.strerror or error}; "
            "name a directory that you may write to"
        ) from error


def _try_to_write(directory: Path) -> None:
    """Make a directory and a file in it, then remove what was not there before."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    finally:
        for path in missing:
            with suppress(OSError):  # was not made, or another run has begun to use it
                path.rmdir()


class Artifacts:
    """Makes the directory of a run when the first test asks for its folder."""

    def __init__(self, settings: Settings, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._directory: Path | None = None
        self._given: set[str] = set()

    @property
    def directory(self) -> Path | None:
        """The directory of this run, None as long as no test has asked."""
        return self._directory

    def folder(self, test: str) -> Path:
        """The empty folder of one test. Raises :class:`SetupError` if it cannot be made."""
        try:
            if self._directory is None:
                self._directory = self._new_directory()
            folder = self._directory / self._unused_name(re.sub(r"[^\w.]+", "-", test).strip("-"))
            if folder.exists():  # an earlier run's, see --artifacts-overwrite
                shutil.rmtree(folder)
            folder.mkdir(PRIVATE)
        except OSError as error:
            raise SetupError(
                f"no folder for the artifacts of {test}: {error}; "
                "--artifacts DIR puts them elsewhere"
            ) from error
        return folder

    def _unused_name(self, wanted: str) -> str:
        """That name, or one with a number if a test of this run has it."""
        name, number = wanted, 1
        while name in self._given:
            number += 1
            name = f"{wanted}_{number}"
        self._given.add(name)
        return name

    def _new_directory(self) -> Path:
        if self._settings.artifacts is not None:
            self._settings.artifacts.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            return self._settings.artifacts
        runs = self._root / RUNS
        runs.mkdir(parents=True, exist_ok=True)
        directory = _unused(runs / time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock())))
        _point(runs / "last", directory.name)
        return directory


def write_json(path: Path, data: Any) -> None:
    """Write a file of JSON for people and programs; all of it or, on an error, nothing."""
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    draft.replace(path)


def _unused(wanted: Path) -> Path:
    """Make that directory, or one with a number, if two runs begin in the same second."""
    number = 1
    candidate = wanted
    while True:
        try:
            candidate.mkdir(PRIVATE)
        except FileExistsError:
            number += 1
            candidate = wanted.with_name(f"{wanted.name}_{number}")
        else:
            return candidate


def _point(link: Path, target: str) -> None:
    """Make or turn a symbolic link in one step, so that nobody ever finds none."""
    draft = link.with_name(f".last-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
