"""What the measurements of docs/told.md that are no plain case come to."""

from __future__ import annotations

from dataclasses import dataclass

from hostfault.case.model import VmmDeed
from hostfault.host.testbed import Testbed
from hostfault.run.arm import Running

EFAULT = 14  # errno(3)


@dataclass(frozen=True)
class Ran:
    """What ran, as it says itself."""

    qemu: str = ""  # version and build id of the guest's
    host_release: str = ""
    kvm_build_id: str = ""

    @classmethod
    def on(cls, testbed: Testbed) -> Ran:
        """Ask for it."""
        running = Running.on(testbed.agent)
        qemu = f"{testbed.recorder.version} {running.qemu_build_id}"
        return cls(qemu, running.host_release, running.kvm_build_id)


@dataclass(frozen=True)
class Outcome:
    """What became of one; see :class:`hostfault.told.run.ToldRun`."""

    verdict: str
    summary: str
    told: int
    cpu_share: float = 0.0  # of a core, while a crowd waited
    deeds: tuple[VmmDeed, ...] = ()
    recovery: str = ""
    guest_answers: bool | None = None
    ran: Ran = Ran()
