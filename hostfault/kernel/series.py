"""Patch series that a kernel can be built with: kernels/patches/series.toml as typed data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.errors import LaunchError, SetupError, UsageError
from hostfault.tools import run_tool

SERIES = Path(__file__).parents[2] / "kernels" / "patches" / "series.toml"
_TARGET = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@.*$", re.MULTILINE)
_FAILED_FILE = re.compile(r"^(?:checking|patching) file '?(?P<file>.+?)'?$")
_FAILED_HUNK = re.compile(r"^Hunk #(?P<number>\d+) FAILED at (?P<line>\d+)")


@dataclass(frozen=True)
class Fit:
    """The patches of a series for a range of releases."""

    first: tuple[int, ...]  # first release, e.g. (6, 12)
    last: tuple[int, ...]  # last one, inclusive; (7, 3) is every 7.3.y
    patches: tuple[Path, ...]  # in the order in which they are applied

    def covers(self, version: tuple[int, ...]) -> bool:
        """Whether a kernel of that version is in the range."""
        return self.first <= version[: len(self.first)] and version[: len(self.last)] <= self.last

    def __str__(self) -> str:
        first, last = (".".join(map(str, end)) for end in (self.first, self.last))
        return first if first == last else f"{first} to {last}"


@dataclass(frozen=True)
class Series:
    """A change to KVM, as patches for several releases."""

    name: str
    summary: str
    fits: tuple[Fit, ...]

    def patches_for(self, version: tuple[int, ...]) -> tuple[Path, ...]:
        """The patches for a kernel version. Raises :class:`UsageError` if there are none."""
        for fit in self.fits:
            if fit.covers(version):
                return fit.patches
        ranges = ", ".join(str(fit) for fit in self.fits)
        wanted = ".".join(map(str, version))
        raise UsageError(f"series {self.name} has no patches for {wanted}; it has for {ranges}")


def load(path: Path = SERIES) -> dict[str, Series]:
    """All series by name."""
    with path.open("rb") as stream:
        entries = tomllib.load(stream)["series"]
    return {
        entry["name"]: Series(
            entry["name"],
            entry["summary"],
            tuple(
                Fit(
                    version_of(fit["first"]),
                    version_of(fit["last"]),
                    tuple(path.parent / patch for patch in fit["patches"]),
                )
                for fit in entry["fits"]
            ),
        )
        for entry in entries
    }


def find(name: str, path: Path = SERIES) -> Series:
    """The series of that name. Raises :class:`UsageError` that lists those there are."""
    known = load(path)
    if name not in known:
        lines = "".join(f"\n  {series.name}: {series.summary}" for series in known.values())
        raise UsageError(f"there is no patch series {name!r}; known are:{lines}")
    return known[name]


def version_of(text: str) -> tuple[int, ...]:
    """The numbers that a release begins with: (7, 3, 4) for 7.3.4+deb13-cloud-amd64."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    if found is None:
        raise UsageError(f"{text!r} does not begin with a kernel version")
    return tuple(int(part) for part in found[0].split("."))


def touched(patches: Sequence[Path]) -> set[str]:
    """The files that patches make or change, relative to the kernel's source."""
    return {name for patch in patches for name in _TARGET.findall(patch.read_text())}


def apply(patches: Sequence[Path], tree: Path) -> None:
    """Apply patches to a source tree, exactly: an offset is fine, fuzz is not.

    Raises :class:`SetupError` that names the first hunk that does not apply.
    """
    for patch in patches:
        try:
            run_tool(
                ["patch", "-p1", "--fuzz=0", "--force", "--reject-file=-"],
                what=f"applying {patch.name}",
                cwd=tree,
                input_text=patch.read_text(),
            )
        except LaunchError as error:
            raise SetupError(
                f"{patch} does not apply: {failed_hunk(error.log_tail, patch.read_text())}"
            ) from error


def failed_hunk(output: str, patch: str) -> str:
    """What patch(1) said about the first hunk that failed, and the hunk's own heading."""
    file = ""
    for line in output.splitlines():
        if found := _FAILED_FILE.match(line):
            file = found["file"]
        if found := _FAILED_HUNK.match(line):
            number = int(found["number"])
            heading = _hunk_heading(patch, file, number)
            return f"hunk {number} of {file} failed at line {found['line']}\n  {heading}".rstrip()
    reason = [line for line in output.splitlines() if line.strip()]
    return reason[-1] if reason else "patch(1) did not say why"


def _hunk_heading(patch: str, file: str, number: int) -> str:
    """The line that begins the ``number``-th hunk (from 1) of a file in a patch."""
    _, _, rest = patch.partition(f"\n+++ b/{file}\n")
    hunks = _HUNK.findall(rest.split("\ndiff --git ")[0])
    return hunks[number - 1] if number <= len(hunks) else ""
