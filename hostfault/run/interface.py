"""What the plugin asks of a lab, and what it gets.

hostfault/lab.py has the real one, the plugin's tests a fake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from hostfault.case.model import Kernel, Observation, Qemu, Scenario, Verdict


@dataclass(frozen=True)
class LabFacts:
    """What a run stands on, known before the first test; the same for all its tests."""

    host_kind: str  # where the KVM under test runs: "local" | "emulated"
    host_reason: str  # why there, e.g. "no usable /dev/kvm: guest did not boot"
    host_kernel: Kernel | None  # None for a local host: it runs what it runs
    host_release: str  # what `uname -r` says on the host
    guest_kernel: Kernel
    qemu: Qemu  # the one that runs the guest


@dataclass(frozen=True)
class Run:
    """One scenario, run and judged."""

    observation: Observation
    verdict: Verdict
    phases: Mapping[str, float]  # seconds of each phase, in order
    cached: bool  # forked from a saved machine


class Lab(Protocol):
    """Runs scenarios on the best host there is; a context manager that cleans up."""

    def __enter__(self) -> Lab:
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

    def run(self, scenario: Scenario, folder: Path) -> Run:
        """Run one scenario and leave its evidence in ``folder``.

        Raises :class:`hostfault.plumbing.errors.HostfaultError`.
        """
