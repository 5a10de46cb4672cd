"""The configuration of a whole kernel, from the fragments in kernels/config/. Pure but for load."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from hostfault.plumbing.errors import SetupError
from hostfault.plumbing.project import KERNELS

FRAGMENTS = KERNELS / "config"
_OPTION = re.compile(r"^(?P<name>CONFIG_\w+)=(?P<value>.+)$")
_OPTIONAL = "#: where Kconfig has it"  # above an option that not every kernel has
# What a .config tells about tools, and about who signs: nothing that a person chose for the kernel.
# There is no Rust in a build root, whatever a configuration says.
_NO_CHOICE = re.compile(
    r"CONFIG_(?:(?:CC|AS|LD)_(?:CAN|HAS|IS|NO|VERSION)\w*|(?:GCC|CLANG|LLD|PAHOLE)_VERSION|RUST\w*"
    r"|BINDGEN_\w+|TOOLS_SUPPORT_RELR|BUILD_SALT|MODULE_SIG_(?:ALL|KEY)|SYSTEM_TRUSTED_KEYS)$"
)


@dataclass(frozen=True)
class Option:
    """One option that the suite asks for."""

    name: str  # "CONFIG_KVM"
    value: str  # "m", "y", or a number or quoted text
    fragment: str  # the file that asks for it
    optional: bool = False  # whether a kernel that does not know the option is good without it

    @property
    def line(self) -> str:
        """As it stands in a .config."""
        return f"{self.name}={self.value}"


def load(folder: Path = FRAGMENTS) -> tuple[Option, ...]:
    """All options, in the order of the fragments' names.

    Raises ValueError for a line that is neither an option nor a comment.
    """
    found: list[Option] = []
    for path in sorted(folder.glob("*.config")):
        found.extend(_options(path.name, path.read_text().splitlines()))
    return tuple(found)


def _options(fragment: str, lines: Iterable[str]) -> Iterable[Option]:
    optional = False
    for line in lines:
        if line == _OPTIONAL:
            optional = True
        elif option := _OPTION.match(line):
            yield Option(option["name"], option["value"], fragment, optional)
            optional = False
        elif line.strip() and not line.startswith("# "):
            raise ValueError(f"{fragment}: neither an option nor a comment: {line!r}")


def wanted(options: Iterable[Option], known: Collection[str]) -> tuple[Option, ...]:
    """The options to ask for in a source whose Kconfig knows the ``known`` ones.

    One that is unknown and not optional is asked for all the same: :func:`check` names it.
    """
    return tuple(each for each in options if not each.optional or each.name in known)


def check(options: Iterable[Option], config: str) -> None:
    """Raise :class:`SetupError` that names every option which a finished .config lacks."""
    got = _set_in(config)
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


def differing(one: str, other: str) -> tuple[str, ...]:
    """The options that differ between two finished .configs, sorted, less :data:`_NO_CHOICE`."""
    here, there = _set_in(one), _set_in(other)
    names = here.keys() | there.keys()
    return tuple(
        name
        for name in sorted(names)
        if here.get(name, "n") != there.get(name, "n") and not _NO_CHOICE.match(name)
    )


def _set_in(config: str) -> dict[str, str]:
    """The options that a .config sets; the last line about an option counts."""
    found = (match for match in map(_OPTION.match, config.splitlines()) if match)
    return {match["name"]: match["value"] for match in found}


def _instead(value: str | None) -> str:
    return "not there" if value is None else f"there it is {value}"
