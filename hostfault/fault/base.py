"""What a fault is: something done on the host to what backs a page of the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hostfault.access import Access
from hostfault.backing import Ability, Backing, GuestView
from hostfault.case.model import Page
from hostfault.remote.agent import Agent
from hostfault.remote.shell import Shell


@dataclass(frozen=True)
class Scene:
    """Where a fault acts: a guest whose page is ready, from both sides."""

    agent: Agent  # the hand on the host
    guest: Shell
    page: Page  # as the host has it
    view: GuestView  # as the guest has it


class Fault(Protocol):
    """One way in which a host loses a page."""

    @property
    def name(self) -> str:
        """In test ids; no name is part of another, for the sake of ``-k``."""

    @property
    def needs(self) -> frozenset[Ability]:
        """What the backing must be able to do; other combinations are no case."""

    @property
    def takes_page(self) -> bool:
        """The host takes the page out of the guest, or never gave it one.

        Then no task can have touched it since without a fault that the host sees.
        """

    @property
    def control(self) -> bool:
        """The host goes on backing the page: the access must succeed."""

    @property
    def starts_as_hole(self) -> bool:
        """The page must not be there before: the access that is watched is the first one."""

    @property
    def undoable(self) -> bool:
        """Whether :meth:`undo` can give the page back."""

    def inject(self, scene: Scene) -> None:
        """Do it, and check that it is done. Raises :class:`HostfaultError`."""

    def undo(self, scene: Scene) -> None:
        """Give the page back, so that a retry of the access finds one."""

    def expected(self, access: Access, was: int, stored: int) -> int | None:
        """The byte that the access must see or leave; None where there is no such page.

        ``was`` is what the page held, ``stored`` what an access that writes stores.
        """


def require(fault: Fault, backing: Backing) -> str:
    """Why this fault cannot happen to this backing; "" if it can."""
    missing = fault.needs - backing.abilities
    reasons = "; ".join(sorted(ability.value for ability in missing))
    return f"{backing.name} cannot have the fault {fault.name}: needs {reasons}" if missing else ""
