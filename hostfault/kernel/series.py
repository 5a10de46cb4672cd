"""Patch series that a kernel can be built with: kernels/patches/series.toml as typed data."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.errors import LaunchError, SetupError, UsageError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.project import KERNELS
from hostfault.plumbing.versions import Range, Version, range_of

SERIES = KERNELS / "patches" / "series.toml"
_TARGET = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)
_SOURCE = re.compile(r"^--- a/(\S+)", re.MULTILINE)  # that of a new file is /dev/null
_HUNK = re.compile(r"^@@ -\d+(?:,\d+)? \+\d+(?:,\d+)? @@.*$", re.MULTILINE)
_FAILED_FILE = re.compile(r"^(?:checking|patching) file '?(?P<file>.+?)'?$")
_FAILED_HUNK = re.compile(r"^Hunk #(?P<number>\d+) FAILED at (?P<line>\d+)")


@dataclass(frozen=True)
class Fit:
    """The patches of a series for a range of releases."""

    kernels: Range  # the releases that they apply to
    patches: tuple[Path, ...]  # in the order in which they are applied
    posted: tuple[Path, ...] = ()  # all that would be sent to a list, in order


@dataclass(frozen=True)
class Series:
    """A change to KVM, as patches for several releases."""

    name: str
    summary: str
    fits: tuple[Fit, ...]

    def patches_for(self, version: Version) -> tuple[Path, ...]:
        """The patches for a kernel version. Raises :class:`UsageError` if there are none."""
        return self.fit_for(version).patches

    def fit_for(self, version: Version) -> Fit:
        """What there is for a kernel version. Raises :class:`UsageError` if there is nothing."""
        for fit in self.fits:
            if fit.kernels.covers(version):
                return fit
        ranges = ", ".join(str(fit.kernels) for fit in self.fits)
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
                    range_of(fit),
                    tuple(path.parent / patch for patch in fit["patches"]),
                    tuple(path.parent / patch for patch in fit.get("posted", fit["patches"])),
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


def touched(patches: Sequence[Path]) -> set[str]:
    """The files that patches make or change, relative to the kernel's source."""
    return {name for patch in patches for name in _TARGET.findall(patch.read_text())}


def apply(patches: Sequence[Path], tree: Path) -> None:
    """Apply patches to a source tree, exactly: an offset is fine, fuzz is not.

    Raises :class:`SetupError` that names the first hunk that does not apply, or the file that is
    missing: of that patch(1) does not tell the name.
    """
    for patch in patches:
        text = patch.read_text()
        if absent := [name for name in _SOURCE.findall(text) if not (tree / name).is_file()]:
            raise SetupError(f"{patch} does not apply: {', '.join(absent)}: not in this source")
        try:
            run_tool(
                ["patch", "-p1", "--fuzz=0", "--force", "--reject-file=-"],
                what=f"applying {patch.name}",
                cwd=tree,
                input_text=text,
            )
        except LaunchError as error:
            raise SetupError(
                f"{patch} does not apply: {failed_hunk(error.log_tail, text)}"
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
