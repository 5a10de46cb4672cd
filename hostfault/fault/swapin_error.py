"""The page was swapped out, and the disk with the swap space fails when it must come back."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.agent import require_expendable

_WRITTEN = 0x44  # in no page before, and nothing that an access stores
_DISK = "swap"  # what the agent calls it


class SwapInError:
    """EIO of memory that is in swap space only; a tmpfs remembers that for good."""

    name = "swapin-error"
    needs = frozenset({Ability.CHARGED})
    takes_page = True
    control = False
    starts_as_hole = True  # nothing has the page mapped, so it can go
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Write the page, swap it out, and break the disk.

        Whether it can be read is not tried: that would be the first failure, in place of KVM's.
        """
        agent, page = scene.agent, scene.page
        require_expendable(agent, "it lets the machine swap")
        if not agent.swap_out(page.path, page.offset, _WRITTEN, page.size):
            raise MissingCapabilityError("loop", "the host's kernel needs CONFIG_BLK_DEV_LOOP")
        agent.break_disk(_DISK)

    def undo(self, scene: Scene) -> None:
        """Mend the disk; the page would read as zeroes."""
        scene.agent.mend_disk(_DISK)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """Nobody can have what the page held."""
        return None
