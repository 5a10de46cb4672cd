"""The host takes the one page out of its file: a hole, with room for a new page or without."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.fault.full import Full
from hostfault.plumbing.errors import HostfaultError


class Punch:
    """fallocate(2) with FALLOC_FL_PUNCH_HOLE: the next page fault finds a new page of zeroes."""

    name = "punch"
    needs = frozenset({Ability.HOST_PAGE})
    takes_page = True
    control = False
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Punch it, and check that it is gone."""
        agent, page = scene.agent, scene.page
        agent.punch(page.path, page.offset, page.size)
        found = agent.byte(page.path, page.offset)
        if found != 0:
            raise HostfaultError(f"the page begins with {found!r}, not with the zero of a hole")

    def undo(self, scene: Scene) -> None:
        """Nothing: what the page held is lost."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """A zero, or what was written since."""
        return stored if access.writes else 0


class Starved(Full):
    """The page was there, is punched out, and no other one can be had: the file system is full.

    What ``full`` is to a page that is touched for the first time.
    """

    name = "starved"
    needs = Full.needs | Punch.needs
    starts_as_hole = False

    def inject(self, scene: Scene) -> None:
        """Punch it, and fill what it leaves."""
        Punch().inject(scene)
        super().inject(scene)
