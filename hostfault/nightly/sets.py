"""The sets of tests that a night can run: two of its own, and those of ci/matrix.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hostfault.plugin import sets as matrix


@dataclass(frozen=True)
class Set:
    """Which tests a night runs."""

    places: tuple[str, ...]  # below the project
    select: str = ""  # pytest's -k
    options: tuple[str, ...] = ()  # of pytest


# "dax" is the same as ci/dax, with the names that its tests have there.
OWN = {
    "smoke": Set(("tests/dax",), select="none-load-apf or zero-load-apf"),
    "dax": Set(("tests/dax",), select="dax"),
}


def load() -> Mapping[str, Set]:
    """All there are, by name. Raises :class:`hostfault.plumbing.errors.UsageError`."""
    cells = {name: Set(("tests/matrix",), options=("--set", name)) for name in matrix.load().sets}
    return {**cells, **OWN}
