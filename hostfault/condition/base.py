"""What a condition is: something that holds all through a case, and is no fault."""

from __future__ import annotations

from typing import Protocol

from hostfault.case.model import PLAIN, Observation
from hostfault.host.testbed import Testbed


class Condition(Protocol):
    """One state of the VM or of the task. A case that it did not hold for is harness trouble."""

    @property
    def name(self) -> str:
        """In test ids."""

    @property
    def task(self) -> str:
        """How the probe places its task: its option ``--task``; "": as the guest's kernel does."""

    @property
    def least_vcpus(self) -> int:
        """With fewer it means nothing."""

    def begin(self, testbed: Testbed) -> None:
        """Bring it about, before the guest's task maps the page. Raises :class:`HostfaultError`."""

    def prove(self, testbed: Testbed, gfn: int) -> None:
        """Check that it holds for the guest frame ``gfn``, which the task has touched by now.

        Raises :class:`HostfaultError`.
        """

    def prove_held(self, testbed: Testbed, observation: Observation) -> None:
        """Check, when all has been observed, that it held. Raises :class:`HostfaultError`."""


class Plain:
    """Nothing in particular."""

    name = PLAIN
    task = ""
    least_vcpus = 1

    def begin(self, testbed: Testbed) -> None:
        """Nothing."""

    def prove(self, testbed: Testbed, gfn: int) -> None:
        """Nothing to prove."""

    def prove_held(self, testbed: Testbed, observation: Observation) -> None:
        """Nothing to prove."""
