"""The file system is full when the guest first touches a page that the file does not have yet."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import MissingCapabilityError


class Full:
    """A full file system: the host has no page for a hole of the file, ENOSPC.

    Users meet it where guest memory is a file on a tmpfs that others fill.
    """

    name = "full"
    needs = frozenset({Ability.OWN_FILE_SYSTEM})
    takes_page = True
    control = False
    starts_as_hole = True
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Fill the file system to its last page, if it is one that the agent has mounted."""
        if not scene.agent.may_fill(scene.page.path):
            raise MissingCapabilityError(
                "tmpfs", "the agent may not mount a tmpfs of its own to be filled: be root"
            )
        scene.agent.fill(scene.page.path)

    def undo(self, scene: Scene) -> None:
        """Make room again."""
        scene.agent.make_room(scene.page.path)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """There is a hole in the file, and no page to put there."""
        return None
