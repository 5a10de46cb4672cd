"""Things that are chosen by name; an unknown name is an error that lists the known ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from hostfault.plumbing.errors import UsageError


class Named(Protocol):
    """Something with a name."""

    @property
    def name(self) -> str:
        """How people choose it."""


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """All implementations of one kind, in the order in which they are listed."""

    def __init__(self, kind: str, members: Sequence[T]) -> None:
        self._kind = kind
        self._members = {member.name: member for member in members}
        if len(self._members) != len(members):
            raise ValueError(f"two of one name among the {kind} implementations")

    def __iter__(self) -> Iterator[T]:
        return iter(self._members.values())

    def __getitem__(self, name: str) -> T:
        """The one of that name. Raises :class:`UsageError` that lists the known ones."""
        if name not in self._members:
            raise UsageError(
                f"there is no {self._kind} {name!r}; known are {', '.join(self._members)}"
            )
        return self._members[name]

    def add(self, member: T) -> None:
        """Make one more known, from a conftest.py for one. Raises ValueError for a name in use."""
        if member.name in self._members:
            raise ValueError(f"there is a {self._kind} {member.name!r} already")
        self._members[member.name] = member
