"""What the plugin asks of a lab: hostfault/lab.py has the real one, the plugin's tests a fake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from hostfault.model import Kernel, Observation, Qemu, Scenario, Verdict


class LabFacts(Protocol):
    """What a run stands on, known before the first test."""

    @property
    def host_kind(self) -> str:
        """Where the KVM under test runs: "local" or "emulated"."""

    @property
    def host_reason(self) -> str:
        """Why there, e.g. "no usable /dev/kvm: guest did not boot"."""

    @property
    def host_kernel(self) -> Kernel | None:
        """The host's kernel; None for a local host."""

    @property
    def host_release(self) -> str:
        """What `uname -r` says on the host."""

    @property
    def guest_kernel(self) -> Kernel:
        """The guest's kernel."""

    @property
    def qemu(self) -> Qemu:
        """The QEMU that runs the guest."""


class Run(Protocol):
    """One scenario, run and judged."""

    @property
    def observation(self) -> Observation:
        """Everything recorded."""

    @property
    def verdict(self) -> Verdict:
        """What it proves."""

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds of each phase, in order."""

    @property
    def cached(self) -> bool:
        """Whether it was forked from a saved machine."""


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

        Raises :class:`hostfault.errors.HostfaultError`.
        """

    def run(self, scenario: Scenario, folder: Path) -> Run:
        """Run one scenario and leave its evidence in ``folder``.

        Raises :class:`hostfault.errors.HostfaultError`.
        """
