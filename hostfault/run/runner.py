"""What the plugin asks of whoever runs its cases; :mod:`hostfault.run.lab` has the real one."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Protocol

from hostfault.case.model import Scenario
from hostfault.case.record import LabFacts, Record


class CaseRunner(Protocol):
    """Runs cases on the best host there is; a context manager that cleans up."""

    def __enter__(self) -> CaseRunner:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None:
        """End every process and remove every trace of the run."""

    def facts(self) -> LabFacts:
        """Prepare kernels, images and host; minutes on the first call.

        Raises :class:`hostfault.plumbing.errors.HostfaultError`.
        """

    def run(self, test: str, scenario: Scenario, folder: Path) -> Record:
        """Run the case of one test and leave its evidence in ``folder``.

        Raises :class:`hostfault.plumbing.errors.HostfaultError`.
        """
