"""What a night is compared to: the last nights in which nothing was worse, a date, or a file.

The file is TOML, made by ``ci/nightly --accept-as-baseline`` and meant to be edited and kept in
version control. One table for each case and verdict, with the kernels that it is expected of.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hostfault.nightly import results
from hostfault.nightly.results import Key, Result, Status
from hostfault.nightly.store import Night, NightStore
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.versions import Range, range_of, version_of


@dataclass(frozen=True)
class Expected:
    """What a cell was, or may be."""

    verdict: str  # the word of a result
    rank: int  # how bad it is
    source: str  # where that is from, for people
    exact: bool = True  # whether the rank must be the same, too


class Baseline(Protocol):
    """Says what is expected of a cell."""

    name: str

    def expected(self, result: Result) -> Expected | None:
        """None: nothing is known of it."""


class OfNights:
    """The newest result of each cell from some nights."""

    def __init__(self, name: str, nights: Sequence[tuple[str, Sequence[Result]]]) -> None:
        """``nights``: newest first."""
        self.name = name
        self._known: dict[Key, tuple[str, Result]] = {}
        for night, found in nights:
            for key, result in results.latest(found).items():
                if not result.outcome.is_trouble and result.outcome is not Status.SKIPPED:
                    self._known.setdefault(key, (night, result))

    def expected(self, result: Result) -> Expected | None:
        """What it was in the newest of the nights that has it."""
        found = self._known.get(result.key)
        if found is None:
            return None
        night, before = found
        return Expected(before.word, results.rank(before), night)


@dataclass(frozen=True)
class Entry:
    """One table of the file."""

    case: str  # pytest's node id, or its end from "::" on
    verdict: str
    kernel: str = ""  # exactly this label, whatever its release
    kernels: Range | None = None  # packaged kernels of these releases
    reason: str = ""
    link: str = ""

    def covers(self, result: Result) -> bool:
        """Whether it speaks of a result's cell."""
        if result.case != self.case and not result.case.endswith(f"::{self.case}"):
            return False
        if self.kernel:
            return result.kernel == self.kernel
        if self.kernels is None or not result.packaged:
            return False
        try:
            return self.kernels.covers(version_of(result.release))
        except ValueError:
            return False  # what was installed there is no kernel of a known numbering


class OfFile:
    """The entries of a file; the first that speaks of a cell decides."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        self.name = str(path)
        self._entries = entries

    def expected(self, result: Result) -> Expected | None:
        """What the file allows."""
        for entry in self._entries:
            if entry.covers(result):
                rank = results.rank_of(entry.verdict)
                return Expected(entry.verdict, rank, entry.reason or self.name, exact=False)
        return None


def choose(text: str, store: NightStore, before: str) -> Baseline:
    """The baseline that ``--baseline`` names, for a night. Raises :class:`UsageError`."""
    if text == "last-green":
        green = [night for night in store.before(before) if night.nothing_is_worse]
        name = f"the last nights in which nothing was worse ({green[0].name})" if green else "none"
        return OfNights(name, [(night.name, store.results(night.name)) for night in green])
    if text in store.names():
        return OfNights(text, [(text, store.results(text))])
    path = Path(text)
    if path.is_file():
        return OfFile(path, read(path))
    nights = ", ".join(store.names()[-5:]) or "none so far"
    raise UsageError(
        f"--baseline {text}: neither last-green, nor a file, nor a night of {store.root} "
        f"(the last ones: {nights})"
    )


def read(path: Path) -> list[Entry]:
    """The entries of a file. Raises :class:`UsageError` that says what is wrong with it."""
    try:
        tables = tomllib.loads(path.read_text())["expected"]
        return [_entry(table) for table in tables]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--baseline {path}: {type(error).__name__}: {error}") from error


def _entry(table: Mapping[str, Any]) -> Entry:
    unknown = set(table) - {"case", "verdict", "kernel", "kernels", "reason", "link"}
    if unknown or ("kernel" in table) == ("kernels" in table):
        raise ValueError(
            f"{dict(table)}: needs case, verdict, and one of kernel and kernels; "
            "may have reason and link"
        )
    return Entry(
        case=str(table["case"]),
        verdict=str(table["verdict"]),
        kernel=str(table.get("kernel", "")),
        kernels=range_of(table["kernels"]) if "kernels" in table else None,
        reason=str(table.get("reason", "")),
        link=str(table.get("link", "")),
    )


def from_night(night: Night, found: Iterable[Result], reason: str, link: str) -> list[Entry]:
    """A night's verdicts as entries; neighbouring packaged kernels with the same become one."""
    known = [
        result
        for result in results.latest(found).values()
        if not result.outcome.is_trouble and result.outcome is not Status.SKIPPED
    ]
    reason = reason or f"accepted as it was in {night.name}"
    packaged = [each for each in known if _version(each) and each.kernel != results.LOCAL]
    entries = [
        Entry(result.case, result.word, kernel=result.kernel, reason=reason, link=link)
        for result in known
        if result not in packaged
    ]
    versions = sorted({_version(result) for result in packaged})
    for case in results.in_order([result.case for result in packaged]):
        of_case = {_version(each): each.word for each in packaged if each.case == case}
        for first, last, verdict in _stretches(versions, of_case):
            entries.append(
                Entry(case, verdict, kernels=Range(first, last), reason=reason, link=link)
            )
    return entries


def _version(result: Result) -> tuple[int, ...]:
    if not result.packaged:
        return ()
    try:
        return version_of(result.release)
    except ValueError:
        return ()


def _stretches(
    versions: Sequence[tuple[int, ...]], words: Mapping[tuple[int, ...], str]
) -> list[tuple[tuple[int, ...], tuple[int, ...], str]]:
    """Neighbours with the same word, from first to last."""
    found: list[tuple[tuple[int, ...], tuple[int, ...], str]] = []
    before: tuple[int, ...] = ()
    for version in versions:
        word = words.get(version)
        if word is None:
            before = ()
            continue
        if found and before and found[-1][1] == before and found[-1][2] == word:
            found[-1] = (found[-1][0], version, word)
        else:
            found.append((version, version, word))
        before = version
    return found


def as_toml(entries: Iterable[Entry]) -> str:
    """The file's text."""
    lines = [
        "# What ci/nightly expects (--baseline FILE): anything worse is news.",
        "# case     pytest's node id, or its end from the test's name on",
        "# verdict  what it may be; docs/verdicts.md",
        "# kernels  packaged kernels of these releases, both included; or",
        "# kernel   exactly this name of --kernels, 'local' for the runner's own",
    ]
    for entry in entries:
        lines += ["", "[[expected]]", f"case = {_text(entry.case)}"]
        lines.append(f"verdict = {_text(entry.verdict)}")
        if entry.kernels is not None:
            first, last = (
                ".".join(map(str, end)) for end in (entry.kernels.first, entry.kernels.last)
            )
            lines.append(f"kernels = {{ first = {_text(first)}, last = {_text(last)} }}")
        else:
            lines.append(f"kernel = {_text(entry.kernel)}")
        lines += [f"reason = {_text(entry.reason)}", f"link = {_text(entry.link)}"]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A basic string of TOML, which is one of JSON but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
