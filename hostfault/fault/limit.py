"""QEMU's cgroup is at its limit when the guest first touches a page: Kubernetes' way to run out."""

from __future__ import annotations

from hostfault.access import Access
from hostfault.backing import QEMU_CHILD, Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import MissingCapabilityError
from hostfault.remote.agent import require_expendable


class MemoryLimit:
    """No byte of memory is left to QEMU's cgroup (cgroup-v2.rst, memory.max).

    The kernel finds nothing to reclaim, and its OOM killer ends a process of that cgroup.
    """

    name = "memcg-oom"
    controller = "memory"
    needs = frozenset({Ability.CHARGED})
    takes_page = True
    control = False
    starts_as_hole = True
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Put QEMU into a cgroup without any room."""
        agent = scene.agent
        require_expendable(agent, "it takes the machine's cgroups")
        if not agent.limit(QEMU_CHILD, self.controller):
            raise MissingCapabilityError(
                "cgroup", f"the host's kernel has no controller {self.controller} of cgroup2"
            )

    def undo(self, scene: Scene) -> None:
        """Lift the limit."""
        scene.agent.lift_limit()

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """There is a hole in the file, and no page to put there."""
        return None


class HugePageLimit(MemoryLimit):
    """No huge page is left to QEMU's cgroup, though the pool has some (hugetlb.2MB.max)."""

    name = "hugetlb-limit"
    controller = "hugetlb"
    needs = frozenset({Ability.POOL})

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """The page, if the kernel gives one: the pool has it. Nothing, if the limit holds."""
        return stored if access.writes else 0
