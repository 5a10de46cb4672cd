"""What an access is: how a guest task touches the page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """One way to touch the page.

    The probe does it: ``images/probe/access/NAME.c`` registers under the same name.
    """

    name: str  # in test ids, on the probe's command line
    writes: bool  # it leaves a byte; otherwise it reports the byte that it saw
    by_kernel: bool  # the guest's kernel touches the page for the task
    outcomes: frozenset[str]  # kinds of outcome that the probe can report: see case.model.Outcome
    amid_others: bool = False  # tasks beside the probe access the page all the time
    nested: bool = False  # a guest of the guest touches the page: the guest needs its KVM
    device: str = ""  # what does it, which the guest is given: "disk", "wire"; "": no device

    @property
    def by_device(self) -> bool:
        """Whether a device does it: the host's KVM sees nothing of that."""
        return bool(self.device)
