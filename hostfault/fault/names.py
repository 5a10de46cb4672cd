"""The host renames the file, unlinks it, or puts another one in its place: controls."""

from __future__ import annotations

from dataclasses import dataclass

from hostfault.access import Access
from hostfault.backing import Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError


@dataclass(frozen=True)
class NameChange:
    """A file that is mapped keeps its pages, whatever becomes of its name."""

    name: str  # "rename", "unlink" or "replace", which is done
    needs: frozenset[Ability] = frozenset({Ability.HOST_NAME})
    takes_page: bool = False
    control: bool = True
    starts_as_hole: bool = False
    undoable: bool = False

    def inject(self, scene: Scene) -> None:
        """Do it, and check which file has the name now."""
        left = scene.agent.change_name(scene.page.path, self.name)
        ours = scene.agent.stat(scene.page.path)["ino"]
        if left == ours or (left == 0) == (self.name == "replace"):
            raise HostfaultError(f"after {self.name} the name is that of inode {left}, ours {ours}")

    def undo(self, scene: Scene) -> None:
        """Nothing: the page is there."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """What is there, or what was written."""
        return stored if access.writes else was
