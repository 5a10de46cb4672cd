"""The program that serves the guest's file system is gone, or stands still: controls.

What it has mapped for the guest is mapped by QEMU, so the page is there whatever becomes of it.
"""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import BACK_END_CHILD, Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


class BackEndDead:
    """The back-end is killed while the page is mapped (SIGKILL)."""

    name = "backend-dead"
    needs = frozenset({Ability.BACK_END})
    takes_page = False
    control = True
    starts_as_hole = False
    undoable = False

    def inject(self, scene: Scene) -> None:
        """Kill it, which is then no trouble of the harness; it is gone when this returns."""
        scene.agent.kill_for_good(BACK_END_CHILD)

    def undo(self, scene: Scene) -> None:
        """Nothing: a back-end that is started anew knows of no file that the guest has open."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """What is there, or what was written."""
        return stored if access.writes else was


class BackEndFrozen(BackEndDead):
    """The back-end is stopped while the page is mapped (SIGSTOP)."""

    name = "backend-frozen"
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Stop it, and check that it stands."""
        state = scene.agent.stop_child(BACK_END_CHILD)
        if state != "T":
            raise HostfaultError(f"the back-end is in state {state!r}, not stopped")

    def undo(self, scene: Scene) -> None:
        """Let it go on."""
        scene.agent.continue_child(BACK_END_CHILD)
