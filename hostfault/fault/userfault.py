"""QEMU's memory is watched by a userfaultfd: what VMMs do that restore a snapshot or migrate.

Firecracker, Cloud Hypervisor and QEMU's own postcopy register guest memory and let a server bring
each page at its first access. Here QEMU is made to open the descriptor, for the one page of a case
(hostfault/agent/userfault.py says how).
"""

from __future__ import annotations

from dataclasses import dataclass

from hostfault.access import Access
from hostfault.backing import QEMU_CHILD, Ability
from hostfault.fault.base import Scene
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError
from hostfault.remote.agent import require_expendable


class UserfaultPoison:
    """UFFDIO_POISON: memory that was bad on the machine from which a guest was migrated.

    No page of this machine is lost; every access by QEMU's page tables meets hardware poison.
    """

    name = "uffd-poison"
    needs = frozenset({Ability.MISSING_FAULTS})
    takes_page = True
    control = False
    starts_as_hole = True  # where a page is mapped there is no place for a poison
    undoable = True

    def inject(self, scene: Scene) -> None:
        """Poison it, and check that QEMU itself cannot read it any more."""
        address = _address(scene)
        if not scene.agent.poison_mapping(QEMU_CHILD, address, scene.page.size):
            raise MissingCapabilityError(
                "uffd-poison", "the host's kernel has no UFFDIO_POISON: that came with Linux 6.6"
            )
        _check_missing(scene, address)

    def undo(self, scene: Scene) -> None:
        """Take the poison away; the file has a hole there, which reads as zeroes."""
        scene.agent.forget_mapping(QEMU_CHILD, _address(scene), scene.page.size)

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """Nobody can have what the page held elsewhere."""
        return None


@dataclass(frozen=True)
class UserfaultServer:
    """A page that a server must bring: it does, or is stopped, or ends when it is asked."""

    name: str
    manner: str  # see Agent.serve_mapping
    needs: frozenset[Ability] = frozenset({Ability.MISSING_FAULTS})
    takes_page: bool = True
    control: bool = False
    starts_as_hole: bool = True

    @property
    def undoable(self) -> bool:
        """A server that is stopped can be continued; others leave no access without an end."""
        return self.manner == "hangs"

    def inject(self, scene: Scene) -> None:
        """Register the page and start the server; check that nobody else brings it."""
        address = _address(scene)
        scene.agent.serve_mapping(QEMU_CHILD, address, scene.page.size, self.manner)
        _check_missing(scene, address)

    def undo(self, scene: Scene) -> None:
        """Let the server answer; it brings a page of zeroes."""
        scene.agent.continue_servers()

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """A zero, the server's or an ordinary page fault's, if there is anything at all."""
        if self.manner == "hangs":
            return None
        return stored if access.writes else 0


def _address(scene: Scene) -> int:
    """Where QEMU has the page mapped. Raises :class:`MissingCapabilityError` where it must not be.

    A QEMU that is confined may not open a userfaultfd, so it is one on an emulated host.
    """
    agent, page = scene.agent, scene.page
    require_expendable(agent, "QEMU is made to open a userfaultfd")
    for address, length, offset in agent.mappings(QEMU_CHILD, page.path):
        if offset <= page.offset < offset + length:
            return address + page.offset - offset
    raise HostfaultError(f"QEMU has {page.path} at {page.offset:#x} not mapped")


def _check_missing(scene: Scene, address: int) -> None:
    """Raise :class:`HostfaultError` if QEMU's memory has a page there, as a reader finds it."""
    found = scene.agent.peek(QEMU_CHILD, address)
    if found is not None:
        raise HostfaultError(f"QEMU's page can still be read after the fault: {found!r}")
