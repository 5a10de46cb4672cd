"""The guest's task stays on one vCPU, or is moved from one to another all the time."""

from __future__ import annotations

from hostfault.case.model import Observation
from hostfault.condition.base import Plain
from hostfault.host.testbed import Testbed


class Placed(Plain):
    """By sched_setaffinity(2), in the guest: see images/probe/task.c.

    The guest's word is taken for it, as no count of the host's tells a guest's tasks apart. No
    verdict depends on it.
    """

    least_vcpus = 2

    def __init__(self, how: str) -> None:
        """``how``: "pinned" or "migrating", the condition's name."""
        self.name = self.task = how

    def prove(self, testbed: Testbed, gfn: int) -> None:
        """The probe is armed only once its task has been seen where it was to be."""

    def prove_held(self, testbed: Testbed, observation: Observation) -> None:
        """Whoever moves the task goes on as long as the task is there."""
