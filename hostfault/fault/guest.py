"""The guest itself truncates the file: a control, as its own file system must answer."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError


class GuestTruncation:
    """truncate(2) in the guest: the host takes part, but no page goes without the guest knowing."""

    name = "guest"
    needs = frozenset({Ability.GUEST_FILE})
    takes_page = False
    control = False
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Cut the file in the guest, and ask the host for its size."""
        command = f"truncate -s 0 {scene.view.path}"
        scene.guest.check(command, Deadline(20.0, "the guest to truncate"))
        size = scene.agent.stat(scene.page.path)["size"]
        if size != 0:
            raise HostfaultError(f"the host file has {size} bytes after the guest cut it to none")

    def undo(self, scene: Scene) -> None:
        """Nothing: what the guest did is the guest's."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """The file has no such page."""
        return None
