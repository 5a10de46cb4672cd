"""Nothing is done: the control case."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene


class NoFault:
    """The host goes on backing the page."""

    name = "none"
    needs: frozenset[Ability] = frozenset()
    takes_page = False
    control = True
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Nothing."""

    def undo(self, scene: Scene) -> None:
        """Nothing."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """What is there, or what was written."""
        return stored if access.writes else was
