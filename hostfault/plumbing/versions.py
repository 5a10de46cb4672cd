"""Kernel versions as numbers, and ranges of them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, ...]  # (7, 3, 4)


def version_of(text: str) -> Version:
    """The numbers that a release begins with: (7, 3, 4) for 7.3.4+deb13-cloud-amd64.

    Raises ValueError if it begins with none, or with one alone.
    """
    found = re.match(r"\d+(?:\.\d+)+", text)
    if found is None:
        raise ValueError(f"{text!r} does not begin with a kernel version")
    return tuple(int(part) for part in found[0].split("."))


@dataclass(frozen=True)
class Range:
    """The releases from one to another, both included."""

    first: Version  # e.g. (6, 12)
    last: Version  # (7, 3) is every 7.3.y

    def covers(self, version: Version) -> bool:
        """Whether a release is in the range."""
        return self.first <= version[: len(self.first)] and version[: len(self.last)] <= self.last

    def __str__(self) -> str:
        first, last = (".".join(map(str, end)) for end in (self.first, self.last))
        return first if first == last else f"{first} to {last}"


def range_of(entry: dict[str, str]) -> Range:
    """The range that a table's ``first`` and ``last`` name, e.g. "6.12" and "7.3"."""
    return Range(version_of(entry["first"]), version_of(entry["last"]))
