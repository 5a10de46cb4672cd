"""The pool of huge pages is empty when the guest first touches a page that its file lacks."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


class HugetlbEmpty:
    """An empty pool: the host has no huge page for a hole of the file.

    Users meet it where a VMM does not reserve what it maps, and others take huge pages meanwhile.
    """

    name = "hugetlb-empty"
    needs = frozenset({Ability.POOL})
    takes_page = True
    control = False
    starts_as_hole = True
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Take the free pages from the pool, and check that none is left."""
        left = scene.agent.drain_pool()
        if left:
            raise HostfaultError(f"the pool still has {left} free huge pages")

    def undo(self, scene: Scene) -> None:
        """Give them back."""
        scene.agent.refill_pool()

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """There is a hole in the file, and no page to put there."""
        return None
