"""The host's memory has an error in the page, which the kernel has been told of."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError


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
        if not agent.may_hurt():
            raise MissingCapabilityError(
                "emulated-host", "hwpoison costs a machine a page: use --host emulated"
            )
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
