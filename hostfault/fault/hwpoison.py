"""The host's memory is bad in the page, or will be: the kernel has been told of it."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import require_expendable


class HardwarePoison:
    """madvise(2) with MADV_HWPOISON on the file's page: the kernel takes it out of use for good.

    A machine has one page less afterwards, so this is for emulated hosts only.
    """

    name = "hwpoison"
    needs = frozenset({Ability.HOST_PAGE})
    takes_page = True
    control = False
    starts_as_hole = False
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Poison it, and check that the host itself cannot read it any more."""
        agent, page = scene.agent, scene.page
        require_expendable(agent, "hwpoison costs a machine a page")
        agent.poison(page.path, page.offset)
        found = agent.byte(page.path, page.offset)
        if found is not None:
            raise HostfaultError(f"the page can still be read after the fault: {found!r}")

    def undo(self, scene: Scene) -> None:
        """Give the file another page; it reads as zeroes."""
        scene.agent.punch(scene.page.path, scene.page.offset, scene.page.size)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """Nobody can have what the page held."""
        return None


class SoftOffline:
    """madvise(2) with MADV_SOFT_OFFLINE: the kernel moves the page to another frame, unharmed.

    What a host does about a page whose memory has had errors that could be corrected. The old
    frame is lost to the machine.
    """

    name = "soft-offline"
    needs = frozenset({Ability.HOST_PAGE})
    takes_page = True
    control = True
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Have it moved, and check that it is somewhere else, and what it was."""
        agent, page = scene.agent, scene.page
        require_expendable(agent, "soft-offline costs a machine a page")
        held = agent.byte(page.path, page.offset)
        before, after = agent.soft_offline(page.path, page.offset)
        if before == after or not after:
            raise HostfaultError(f"the page was not moved: from frame {before:#x} to {after:#x}")
        found = agent.byte(page.path, page.offset)
        if found != held:
            raise HostfaultError(f"the page held {held!r}, and holds {found!r} since it was moved")

    def undo(self, scene: Scene) -> None:
        """Nothing: nothing is lost."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """What it held, or what was written since."""
        return stored if access.writes else was
