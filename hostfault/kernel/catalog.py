"""The packaged kernels that are known by name: kernels/catalog.toml as typed data."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.project import KERNELS

CATALOG = KERNELS / "catalog.toml"


@dataclass(frozen=True)
class CatalogEntry:
    """A kernel as Debian packages it."""

    name: str  # what a person asks for, e.g. "6.12"
    release: str  # what `uname -r` says
    suite: str  # the Debian suite that has the packages
    packages: tuple[str, ...]  # all that must be unpacked


def load(path: Path = CATALOG) -> dict[str, CatalogEntry]:
    """The catalogue by name, oldest kernel first."""
    with path.open("rb") as stream:
        entries = tomllib.load(stream)["kernel"]
    return {
        entry["name"]: CatalogEntry(
            entry["name"], entry["release"], entry["suite"], tuple(entry["packages"])
        )
        for entry in entries
    }


def newest(path: Path = CATALOG) -> str:
    """The name of the newest catalogued kernel: the default for host and guest."""
    return list(load(path))[-1]
