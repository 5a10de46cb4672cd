"""The configuration of a whole kernel, from the fragments in kernels/config/. Pure but for load."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hostfault.errors import SetupError
from hostfault.kernel.series import version_of

FRAGMENTS = Path(__file__).parents[2] / "kernels" / "config"
_OPTION = re.compile(r"^(?P<name>CONFIG_\w+)=(?P<value>.+)$")
_CONDITION = re.compile(r"^#: (?P<end>from|until) (?P<version>[\d.]+)$")


@dataclass(frozen=True)
class Option:
    """One option that the suite asks for."""

    name: str  # "CONFIG_KVM"
    value: str  # "m", "y", or a number or quoted text
    fragment: str  # the file that asks for it
    first: tuple[int, ...] = ()  # the first version that has it; empty: all
    last: tuple[int, ...] = ()  # the last one, in which a part that is left out matches any

    @property
    def line(self) -> str:
        """As it stands in a .config."""
        return f"{self.name}={self.value}"

    def exists_in(self, version: tuple[int, ...]) -> bool:
        """Whether a kernel of that version has the option at all."""
        after = self.first <= version
        return after and (not self.last or version[: len(self.last)] <= self.last)


def load(folder: Path = FRAGMENTS) -> tuple[Option, ...]:
    """All options, in the order of the fragments' names.

    Raises ValueError for a line that is neither an option nor a comment.
    """
    found: list[Option] = []
    for path in sorted(folder.glob("*.config")):
        found.extend(_options(path.name, path.read_text().splitlines()))
    return tuple(found)


def _options(fragment: str, lines: Iterable[str]) -> Iterable[Option]:
    ends: dict[str, tuple[int, ...]] = {}
    for line in lines:
        if condition := _CONDITION.match(line):
            ends[condition["end"]] = version_of(condition["version"])
        elif option := _OPTION.match(line):
            yield Option(
                option["name"],
                option["value"],
                fragment,
                first=ends.get("from", ()),
                last=ends.get("until", ()),
            )
            ends = {}
        elif line.strip() and not line.startswith("# "):
            raise ValueError(f"{fragment}: neither an option nor a comment: {line!r}")


def wanted_for(options: Iterable[Option], version: tuple[int, ...]) -> tuple[Option, ...]:
    """The options that a kernel of that version has."""
    return tuple(option for option in options if option.exists_in(version))


def check(options: Iterable[Option], config: str) -> None:
    """Raise :class:`SetupError` that names every option which a finished .config lacks."""
    found = [match for match in map(_OPTION.match, config.splitlines()) if match]
    got = {match["name"]: match["value"] for match in found}
    gone = [
        f"{option.line} ({option.fragment}; {_instead(got.get(option.name))})"
        for option in options
        if got.get(option.name, "n") != option.value
    ]
    if gone:
        raise SetupError(
            "the kernel's configuration does not take options that the suite needs, because they "
            "were renamed, or depend on others that are off; mend kernels/config/:\n  "
            + "\n  ".join(gone)
        )


def _instead(value: str | None) -> str:
    return "not there" if value is None else f"there it is {value}"
