"""The disk below the file fails when the host must read the page from it."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import FOLDER, Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError

_WRITTEN = 0x44  # in no page before, and nothing that an access stores


class DiskError:
    """EIO: the page is in the file, not in memory, and the disk does not give it."""

    name = "eio"
    needs = frozenset({Ability.DISK})
    takes_page = True
    control = False
    starts_as_hole = True  # nothing has the page mapped, so it can be evicted
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Write the page to the disk, evict it and break the disk; check that it cannot be read."""
        agent, page = scene.agent, scene.page
        agent.write_pages(page.path, page.offset, [_WRITTEN], page.size)
        agent.evict(page.path, page.offset, page.size)
        agent.break_disk(FOLDER)
        found = agent.byte(page.path, page.offset)
        if found is not None:
            raise HostfaultError(f"the page can still be read after the fault: {found!r}")

    def undo(self, scene: Scene) -> None:
        """Mend the disk; the page reads as zeroes."""
        scene.agent.mend_disk(FOLDER)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """Nobody can have what the page held."""
        return None
