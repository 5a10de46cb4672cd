"""One test that came to a verdict: the only thing that is wrapped around one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.known_issues import KnownIssue
from hostfault.case.model import (
    STOCK,
    Kernel,
    Observation,
    Qemu,
    Scenario,
    Verdict,
    VerdictKind,
)
from hostfault.case.settings import Settings


@dataclass(frozen=True)
class LabFacts:
    """What a run stands on, known before the first test; the same for all its tests."""

    host_kind: str  # where the KVM under test runs: "local" | "emulated" | "ssh"
    host_reason: str  # why there, e.g. "no usable /dev/kvm: guest did not boot"
    host_kernel: Kernel | None  # None for a local host: it runs what it runs
    host_release: str  # what `uname -r` says on the host
    guest_kernel: Kernel
    qemu: Qemu  # the one that runs the guest
    vmm_policy: str = STOCK  # what that does about a page that KVM cannot back
    back_end: str = ""  # the virtiofs back-end that was named, and its sha256; "" for ours
    host_cpu: str = ""  # model name and microcode of the host's CPU; "" for one that QEMU emulates
    host_microcode: str = ""


class UnmetError(AssertionError):
    """The verdict is not what the test wants; the message has the evidence."""


@dataclass(frozen=True)
class Record:
    """A case that was run and judged. A test asks one of the ``must`` methods."""

    test: str  # its pytest node id
    facts: LabFacts
    settings: Settings
    observation: Observation
    verdict: Verdict
    phases: Mapping[str, float]  # seconds of each phase, in order
    cached: bool  # forked from a snapshot that was there
    issue: KnownIssue | None  # the one that the host kernel is known to have, for this scenario
    folder: Path  # its artifacts

    @property
    def scenario(self) -> Scenario:
        """What was run."""
        return self.observation.scenario

    @property
    def is_accepted(self) -> bool:
        """Whether a test whose host cannot back the page passes."""
        return self.settings.accepts(self.verdict)

    @property
    def is_known(self) -> bool:
        """Whether the verdict is the one that the known issue foretells."""
        return self.issue is not None and self.verdict.kind is self.issue.verdict

    def must_be_told(self) -> None:
        """Fail unless somebody learnt of the error: the task, or under --accept vm the VMM."""
        if not self.is_accepted:
            raise UnmetError(self.in_full())

    def must_be(self, kind: VerdictKind) -> None:
        """Fail unless the verdict is exactly this one."""
        if self.verdict.kind is not kind:
            raise UnmetError(f"expected {kind.value}, got {self.in_full()}")

    def must_be_right(self) -> None:
        """Fail unless the access has what there is, or somebody learnt that there is nothing."""
        if self.observation.terms.expected is None:
            self.must_be_told()
        else:
            self.must_be(VerdictKind.OK)

    def must_be_signal(self, number: int) -> None:
        """Fail unless the task got that signal for its access."""
        self.must_be(VerdictKind.TASK_ERROR)
        outcome = self.observation.probe.outcome
        if outcome is None or (outcome.kind, outcome.value) != ("signal", number):
            raise UnmetError(f"expected signal {number}, got {self.in_full()}")

    def in_full(self) -> str:
        """What a person reads when the verdict is not what the test wants."""
        lines = [f"{self.verdict.kind.value.upper()}: {self.verdict.summary}", "", "evidence:"]
        lines += [f"  {line}" for line in self.verdict.evidence]
        if self.is_known and self.issue is not None:
            lines += ["", self.issue.reason]
        return "\n".join([*lines, "", f"artifacts: {self.folder}"])
