"""The host truncates the file: to nothing, or to just below the page."""

from __future__ import annotations

from dataclasses import dataclass

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


@dataclass(frozen=True)
class Truncation:
    """ftruncate(2) on the host: the page cache lets go of the page, and KVM is told to unmap it."""

    name: str
    keep: bool  # what is below the page
    needs: frozenset[Ability] = frozenset({Ability.HOST_FILE})
    takes_page: bool = True
    control: bool = False
    starts_as_hole: bool = False
    undoable: bool = True

    def inject(self, scene: Scene) -> None:
        """Cut the file, and ask for its size."""
        wanted = scene.page.offset if self.keep else 0
        scene.agent.truncate(scene.page.path, wanted)
        size = scene.agent.stat(scene.page.path)["size"]
        if size != wanted:
            raise HostfaultError(f"the host file has {size} bytes after the fault, not {wanted}")

    def undo(self, scene: Scene) -> None:
        """Let the file grow over the page again; it reads as zeroes."""
        scene.agent.truncate(scene.page.path, scene.page.offset + scene.page.size)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """The file has no such page."""
        return None
