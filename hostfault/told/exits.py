"""What a guest costs that has no faults: the same work, its exits counted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hostfault.backing.virtiofs_dax import MOUNT_POINT
from hostfault.guest import boot
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline
from hostfault.run.arm import vcpu_stats
from hostfault.run.lab import Lab
from hostfault.told.outcome import EFAULT, Outcome, Ran
from hostfault.told.plan import Measurement

RUNS = 5
PATIENCE = 120.0  # seconds for one
# Programs that start and end, files of the mount that are written and read.
WORK = "; ".join(
    (
        "for i in $(seq 40)",
        f"do dd if=/dev/zero of={MOUNT_POINT}/work bs=4k count=64 2>/dev/null || exit 1",
        f"dd if={MOUNT_POINT}/work of=/dev/null bs=4k 2>/dev/null || exit 1",
        "done",
    )
)


@dataclass(frozen=True)
class Count:
    """Of one run, or since the guest began."""

    exits: int  # of the guest to KVM
    faults: int  # page faults that KVM took
    returns: int  # of KVM_RUN to QEMU
    failed: int  # of these with EFAULT

    def since(self, before: Count) -> Count:
        """What was counted between the two."""
        return Count(
            self.exits - before.exits,
            self.faults - before.faults,
            self.returns - before.returns,
            self.failed - before.failed,
        )


def run(lab: Lab, cell: Measurement, folder: Path) -> Outcome:
    """Do the work once to warm the guest up, and then some times.

    Raises :class:`HostfaultError` if it fails.
    """
    with lab.testbed(cell.scenario, folder) as testbed:
        testbed.agent.trace()
        _work(testbed)
        counts = [_count(testbed)]
        for _ in range(RUNS):
            _work(testbed)
            counts.append(_count(testbed))
        ran = Ran.on(testbed)
    runs = [after.since(before) for before, after in itertools.pairwise(counts)]
    told = sum(each.failed for each in runs)
    return Outcome("ok", in_words(runs), told, guest_answers=True, ran=ran)


def in_words(runs: Sequence[Count]) -> str:
    """The median of each count, and its range."""
    names = {
        "exits": [each.exits for each in runs],
        "page faults": [each.faults for each in runs],
        "returns of KVM_RUN": [each.returns for each in runs],
    }
    return "; ".join(
        f"{median(counts):,.0f} {name} ({min(counts):,} to {max(counts):,})"
        for name, counts in names.items()
    )


def _work(testbed: Testbed) -> None:
    testbed.guest.check(WORK, Deadline(PATIENCE, "the guest's work"))


def _count(testbed: Testbed) -> Count:
    stats = vcpu_stats(testbed.recorder)
    returns: Counter[int] = Counter()
    for _, error, count in testbed.agent.sample(boot.NAME, ())["exits"]:
        returns[error] += count
    return Count(stats["exits"], stats["pf_taken"], returns.total(), returns[-EFAULT])
