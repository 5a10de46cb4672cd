"""The host truncates the file and gives it its old length again: the page is a new one."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


class Regrown:
    """ftruncate(2) twice, as of a program that writes a file anew.

    KVM is told to unmap the page, and finds another one at the next page fault.
    """

    name = "regrown"
    needs = frozenset({Ability.HOST_FILE})
    takes_page = True
    control = False
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Cut the file to nothing, let it grow, and check that the old page is gone."""
        agent, page = scene.agent, scene.page
        size = agent.stat(page.path)["size"]
        agent.truncate(page.path, 0)
        agent.truncate(page.path, size)
        found = agent.byte(page.path, page.offset)
        if found != 0:
            raise HostfaultError(f"the page begins with {found!r}, not with the zero of a new one")

    def undo(self, scene: Scene) -> None:
        """Nothing: what the page held is lost."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """A zero, or what was written since."""
        return stored if access.writes else 0
