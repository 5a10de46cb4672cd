"""Many tasks of one guest on pages that are gone: who gets a signal, and do the others live?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hostfault.backing import virtiofs_dax
from hostfault.case.model import PAGE_SIZE, VmmDeed
from hostfault.guest import boot, crowd, policy
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import HostfaultError
from hostfault.run.lab import Lab
from hostfault.told.outcome import EFAULT, Outcome, Ran
from hostfault.told.plan import Measurement, Tasks

FILE = "crowd"
LENGTH = 2 << 20  # bytes of the file
PATIENCE = 60.0  # seconds from the word until nothing is proven
WINDOW = 5.0  # seconds over which a crowd that waits is watched
INTERVAL = 0.2  # seconds between two looks
EXITS = 8  # of KVM_RUN, before a crowd counts as waiting


@dataclass(frozen=True)
class Counts:
    """What has been counted at one moment."""

    at: float  # seconds, on no clock in particular
    failed: int  # returns of KVM_RUN with EFAULT
    vcpu_seconds: float
    deeds: tuple[VmmDeed, ...]


def run(lab: Lab, cell: Measurement, folder: Path) -> Outcome:
    """Truncate the file under a crowd, and wait for what the policy makes of it.

    Raises :class:`HostfaultError` if nothing is proven.
    """
    tasks = cell.tasks
    assert tasks is not None, f"{cell.key} has no crowd"
    with lab.testbed(cell.scenario, folder) as testbed:
        path = f"{virtiofs_dax.SHARED}/{FILE}"
        testbed.agent.make_file(path, [0xA5], PAGE_SIZE)
        testbed.agent.truncate(path, LENGTH)
        mapped = f"{virtiofs_dax.MOUNT_POINT}/{FILE}"
        found = crowd.start(testbed.guest, mapped, LENGTH, tasks.all, "fair", move=False)
        found.mapped(Deadline(60.0, "the crowd to map its file"))
        found.arm(tasks.pages, Deadline(60.0, "all tasks to be ready"))
        testbed.agent.trace()
        testbed.agent.truncate(path, 0)
        found.go()
        if cell.policy == "stop":
            return _waiting(testbed, found, tasks, path)
        return _signalled(testbed, found, tasks)


def _signalled(testbed: Testbed, found: crowd.Crowd, tasks: Tasks) -> Outcome:
    touched, signalled = _end(testbed, found)
    counts, bad = _count(testbed), len(tasks.pages)
    right = (touched, signalled) == (0, bad)
    return Outcome(
        verdict="task-error" if right else "stale",
        summary=f"{signalled} of {bad} got a signal, {tasks.all - bad} others went on",
        told=counts.failed,
        deeds=counts.deeds,
        guest_answers=_answers(testbed),
        ran=Ran.on(testbed),
    )


def _waiting(testbed: Testbed, found: crowd.Crowd, tasks: Tasks, path: str) -> Outcome:
    """Watch it wait for a while, then give the pages back."""
    deadline = Deadline(PATIENCE, "a vCPU to be kept out of the guest")
    while _count(testbed).failed < EXITS:  # of all pages: an interrupt brings the next task
        testbed.recorder.wait_changed(INTERVAL)
        deadline.check()
    first, window = _count(testbed), Deadline(WINDOW, "the window to pass")
    while not window.passed():
        testbed.recorder.wait_changed(window.left())
    last = _count(testbed)
    testbed.agent.truncate(path, LENGTH)
    touched, signalled = _end(testbed, found)
    whole = (touched, signalled) == (len(tasks.pages), 0)
    seconds = last.at - first.at
    return Outcome(
        verdict="vm-exit",
        summary=f"in {seconds:.1f} s of waiting {last.failed - first.failed} exits; then "
        f"{touched} of {len(tasks.pages)} loads worked, {signalled} got a signal",
        told=last.failed,
        cpu_share=round((last.vcpu_seconds - first.vcpu_seconds) / seconds, 2),
        deeds=last.deeds,
        recovery="goes-on" if whole else "lost",
        guest_answers=_answers(testbed),
        ran=Ran.on(testbed),
    )


def _end(testbed: Testbed, found: crowd.Crowd) -> tuple[int, int]:
    """How many touches worked, and how many ended in a signal."""
    deadline = Deadline(PATIENCE, "every task of the crowd to end")
    while True:
        testbed.recorder.wait_changed(INTERVAL)
        if any(event.name in ("STOP", "GUEST_PANICKED") for event in testbed.recorder.events()):
            raise HostfaultError("the VM stopped under the crowd")
        if finished := found.finished():
            return finished
        deadline.check()


def _count(testbed: Testbed) -> Counts:
    seen = testbed.agent.sample(boot.NAME, testbed.policy.logs)
    return Counts(
        at=now(),
        failed=sum(count for _, error, count in seen["exits"] if error == -EFAULT),
        vcpu_seconds=seen["vcpu_seconds"],
        deeds=tuple(deed for deed in policy.deeds("".join(seen["tails"])) if deed.gpa is not None),
    )


def _answers(testbed: Testbed) -> bool:
    return testbed.guest.run("true", Deadline(10.0, "the guest to answer")).code == 0
