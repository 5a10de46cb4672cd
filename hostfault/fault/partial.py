"""The host truncates the file to the middle of the page: a control, for half a page is a page."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.case.model import PAGE_SIZE
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


class PartialTruncation:
    """ftruncate(2) into the page: the rest of it becomes zeroes, and it stays where it is."""

    name = "partial"
    needs = frozenset({Ability.HOST_FILE, Ability.SMALL_PAGES})
    takes_page = False
    control = True
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Cut the file, and check that it ends in the page."""
        agent, page = scene.agent, scene.page
        wanted = page.offset + PAGE_SIZE // 2
        size = agent.truncate(page.path, wanted)
        if size != wanted or agent.byte(page.path, page.offset) is None:
            raise HostfaultError(f"the host file has {size} bytes after the fault, not {wanted}")

    def undo(self, scene: Scene) -> None:
        """Nothing: the page is there."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """The page's first byte is as it was."""
        return stored if access.writes else was
