"""The nights, by date below one directory: what was planned, what came out, how long it is kept.

::

    RESULTS/lock                        held by the run that is on, with who that is
    RESULTS/2026-11-24/night.json       the plan and how far it got
                      /results.jsonl    one line for each run of a test
                      /runs/001-7.3.4/  what a run of pytest left; .tar.xz once the night is over
                      /report.html ...  for people and other programs
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostfault.nightly import results
from hostfault.nightly.results import Key, Result
from hostfault.plumbing.errors import UsageError

_NAME = re.compile(r"(?P<date>\d{4}-\d\d-\d\d)(?:\.(?P<number>\d+))?")
_DAY = 86400.0


@dataclass(frozen=True)
class Night:
    """One night: its plan, and how far it got."""

    name: str  # 2026-11-24, or 2026-11-24.2 for a second one of that day
    set: str  # which tests
    kernels: Mapping[str, str]  # label -> what pytest's --host-kernel gets; "local" for none
    minutes: float  # the budget
    began: float  # seconds since the epoch
    spent: float = 0.0  # seconds of the budget that are used up
    finished: float = 0.0  # seconds since the epoch; 0: it was stopped, and may go on
    cases: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by kernel
    left: Sequence[Key] = ()  # what did not fit; comes first in the next night
    worse: Sequence[Key] = ()  # what was worse than the baseline, once it is over
    notes: Sequence[str] = ()  # what a person should know of the run itself
    code: int = 0  # the exit code
    accepted: bool = False  # by a person, as the baseline from then on
    runner: str = ""  # the machine's name
    options: Sequence[str] = ()  # further ones of pytest
    shard: str = ""  # "2/3"; empty for all
    optional: Sequence[str] = ()  # kernels that nobody asked for by name

    @property
    def nothing_is_worse(self) -> bool:
        """Whether its verdicts can be what the next ones are compared to."""
        return self.finished > 0 and (self.code in (0, 3) or self.accepted)


class NightStore:
    """The directory of all nights."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str) -> Path:
        """Where a night is."""
        return self.root / name

    def names(self) -> list[str]:
        """All nights, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            found = [
                path.name
                for path in self.root.iterdir()
                if _NAME.fullmatch(path.name) and (path / "night.json").is_file()
            ]
        return sorted(found, key=_order)

    def nights(self) -> list[Night]:
        """All nights that can be read, oldest first."""
        found = []
        for name in self.names():
            with contextlib.suppress(ValueError):
                found.append(self.night(name))
        return found

    def night(self, name: str) -> Night:
        """One night. Raises ValueError for a damaged file."""
        path = self.folder(name) / "night.json"
        try:
            return _night(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def new_name(self, moment: float) -> str:
        """A name that no night has, for one that begins at a moment."""
        date = time.strftime("%Y-%m-%d", time.localtime(moment))
        taken = {path.name for path in self.root.glob(f"{date}*")} if self.root.is_dir() else set()
        number, name = 1, date
        while name in taken:
            number += 1
            name = f"{date}.{number}"
        return name

    def save(self, night: Night) -> None:
        """Write a night's plan; all of it or, on an error, nothing."""
        folder = self.folder(night.name)
        folder.mkdir(parents=True, exist_ok=True)
        data = dataclasses.asdict(night)
        for name, keys in (("left", night.left), ("worse", night.worse)):
            data[name] = [[key.kernel, key.case] for key in keys]
        replace_text(folder / "night.json", json.dumps(data, indent=1) + "\n")

    def results(self, name: str) -> list[Result]:
        """The results of a night, in the order of running; a line cut short is passed over."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder(name) / "results.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(results.from_json(json.loads(line)))
        return found

    def save_results(self, name: str, found: Iterable[Result]) -> None:
        """Write the results of a night."""
        lines = [json.dumps(results.to_json(each)) + "\n" for each in found]
        replace_text(self.folder(name) / "results.jsonl", "".join(lines))

    def before(self, name: str) -> list[Night]:
        """The finished nights before one, newest first."""
        limit = _order(name)
        return [
            night
            for night in reversed(self.nights())
            if _order(night.name) < limit and night.finished
        ]

    def prune(self, keep: float, moment: float) -> list[str]:
        """Remove the nights that began more than ``keep`` seconds ago; returns their names.

        The newest in which nothing was worse stays: without it, nothing could be news.
        """
        nights = self.nights()
        compared_to = next((n.name for n in reversed(nights) if n.nothing_is_worse), None)
        old = [n.name for n in nights if moment - n.began > keep and n.name != compared_to]
        for name in old:
            shutil.rmtree(self.folder(name))
        return old

    def compress(self, name: str) -> None:
        """Turn what every run of a night left into one file each."""
        runs = self.folder(name) / "runs"
        for run in sorted(runs.iterdir()) if runs.is_dir() else ():
            if run.name.endswith(".part"):
                run.unlink()  # somebody was killed while writing it
            elif run.is_dir():
                _pack(run)

    def evidence(self, name: str) -> Evidence:
        """The files of a night's tests."""
        return Evidence(self.folder(name))


class Evidence:
    """The files of tests, from the folders of a night or from what they were packed into."""

    def __init__(self, night: Path) -> None:
        self._night = night
        self._packed: dict[str, dict[str, bytes]] = {}

    def text(self, result: Result, name: str, limit: int = 4_000_000) -> str:
        """A file of a test as text, empty if there is none; ``limit`` bytes of it at most."""
        if not result.folder:
            return ""
        try:
            with (self._night / result.folder / name).open("rb") as stream:
                data = stream.read(limit)
        except OSError:
            data = self._from_pack(f"{result.folder}/{name}")[:limit]
        return data.decode(errors="replace")

    def _from_pack(self, path: str) -> bytes:
        _, run, name = path.split("/", 2)
        if run not in self._packed:
            self._packed[run] = _unpack(self._night / "runs" / f"{run}.tar.xz")
        return self._packed[run].get(name, b"")


def _unpack(path: Path) -> dict[str, bytes]:
    """The files in a pack that a report shows, by path in the run; the disk gets nothing."""
    wanted = (".json", ".jsonl", ".txt", ".log")
    found: dict[str, bytes] = {}
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(path) as pack:
        for member in pack:
            stream = pack.extractfile(member) if member.name.endswith(wanted) else None
            if stream is not None:
                found[member.name.partition("/")[2]] = stream.read()
    return found


def _pack(run: Path) -> None:
    packed = run.with_name(f"{run.name}.tar.xz")
    draft = packed.with_name(f"{packed.name}.part")
    with tarfile.open(draft, "w:xz") as pack:
        pack.add(run, arcname=run.name)
    draft.replace(packed)
    shutil.rmtree(run)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that whoever reads it finds the old one or the new one."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def keep_seconds(text: str) -> float:
    """How long ``30d``, ``8w`` or ``12h`` is. Raises :class:`UsageError`."""
    found = re.fullmatch(r"(\d+)([hdw])", text)
    if found is None:
        raise UsageError(f"--keep {text}: give a number and a unit, as 30d, 8w or 12h")
    return int(found[1]) * {"h": 3600.0, "d": _DAY, "w": 7 * _DAY}[found[2]]


def _order(name: str) -> tuple[str, int]:
    found = _NAME.fullmatch(name)
    return (found["date"], int(found["number"] or 1)) if found else (name, 0)


def _night(data: dict[str, Any]) -> Night:
    names = {each.name for each in dataclasses.fields(Night)}
    known = {name: value for name, value in data.items() if name in names}
    for name in ("left", "worse"):
        known[name] = tuple(Key(kernel, case) for kernel, case in data.get(name, ()))
    return Night(**known)
