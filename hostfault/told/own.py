"""A page that the guest's kernel takes for itself: memory from a DIMM whose tmpfs is full.

The DIMM is a file on the tmpfs of the case's backing, and offline until the fault has been
injected. Its zone is then the first from which the guest's kernel takes memory, for page tables and
slabs as for the page cache: each page is touched for the first time, and there is none to be had.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from hostfault.backing.store import FILE
from hostfault.case.model import PAGE_SIZE, VmmDeed
from hostfault.case.words import GUEST_OOPS, VMM_WORDS, telling_line
from hostfault.guest import boot, policy
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError
from hostfault.remote.channel import Channel
from hostfault.run.lab import Lab
from hostfault.told.outcome import EFAULT, Outcome, Ran
from hostfault.told.plan import DIMM_AT, Measurement

PATIENCE = 60.0  # seconds until something is proven, and again until the guest has gone on
INTERVAL = 0.2  # seconds between two looks
FAILED = 8  # returns of KVM_RUN with EFAULT, before a vCPU counts as kept out of the guest
SPINS = 1000  # faults on one gfn of the DIMM's, of which user space was not told
LENGTH = 8 << 20  # bytes that the guest's kernel is then asked to keep
LINE = "hostfault\n"
WORK = "; ".join(
    (
        "for each in /sys/devices/system/memory/memory*",
        'do [ "$(cat $each/state)" = offline ] || continue',
        "echo online_kernel >$each/state || exit 1",
        "done",
        "mkdir /tmp/own && mount -t tmpfs own /tmp/own || exit 1",
        f"yes {LINE.strip()} | head -c {LENGTH} >/tmp/own/file || exit 1",
        """printf '{"step": "done", "sum": "%s"}\\n' "$(md5sum </tmp/own/file | cut -d' ' -f1)\"""",
    )
)


@dataclass(frozen=True)
class Counts:
    """What has been counted at one moment."""

    failed: int  # returns of KVM_RUN with EFAULT
    gfn: int  # of the DIMM's the one with the most faults
    faults: int  # on it
    deeds: tuple[VmmDeed, ...]


def run(lab: Lab, cell: Measurement, folder: Path) -> Outcome:
    """Have the guest's kernel take such a page, and make room again.

    Raises :class:`HostfaultError` if it never meets one, or if nothing is proven.
    """
    with lab.testbed(cell.scenario, folder) as testbed:
        testbed.agent.trace()
        testbed.agent.fill(FILE)
        work = Channel("guest", testbed.guest.open(WORK, Deadline(20.0, "the guest to begin")))
        verdict, words = _what_follows(testbed, work, cell.policy)
        counts = _count(testbed)
        recovery = "" if verdict == "guest-death" else _make_room(testbed, work)
        ran = Ran.on(testbed)
    return Outcome(
        verdict=verdict,
        summary=words,
        told=counts.failed,
        deeds=counts.deeds,
        recovery=recovery,
        guest_answers=recovery == "goes-on",
        ran=ran,
    )


def _what_follows(testbed: Testbed, work: Channel, policy_name: str) -> tuple[str, str]:
    """The verdict, and what proves it."""
    deadline = Deadline(PATIENCE, "the guest's kernel to take a page that the host does not have")
    while True:
        work.listen(INTERVAL)
        if any(step.get("step") == "done" for step in work.steps()):
            raise HostfaultError("the guest's kernel took no page that the host did not have")
        names = {event.name for event in testbed.recorder.events()}
        if "GUEST_PANICKED" in names:
            return "guest-death", telling_line(GUEST_OOPS, boot.console(testbed.agent))
        if "STOP" in names:
            return "vm-exit", telling_line(VMM_WORDS, boot.qemu_log(testbed.agent))
        counts = _count(testbed)
        seen = f"{counts.failed} exits, {counts.faults:,} faults on gfn {counts.gfn:#x}"
        if policy_name == "stop" and counts.failed >= FAILED:
            return "vm-exit", f"the vCPU is kept out of the guest: {seen}"
        if not counts.failed and counts.faults >= SPINS:
            return "spin", f"the guest's kernel spins: {seen}"
        deadline.saw(seen)
        deadline.check()


def _make_room(testbed: Testbed, work: Channel) -> str:
    """Whether the guest goes on with the right bytes once there is room."""
    testbed.agent.make_room(FILE)
    try:
        done = work.wait_for("done", Deadline(PATIENCE, "the guest to go on"))
    except (ConnectionLostError, DeadlineError):
        return "lost"
    return "goes-on" if done.get("sum") == right_sum() else "goes on with wrong bytes"


def right_sum() -> str:
    """What the guest must find in its file (MD5, in hex)."""
    text = LINE.encode() * (LENGTH // len(LINE) + 1)
    return hashlib.md5(text[:LENGTH], usedforsecurity=False).hexdigest()


def _count(testbed: Testbed) -> Counts:
    seen = testbed.agent.sample(boot.NAME, testbed.policy.logs)
    faults: dict[int, int] = {}
    for gfn, _, count in seen["faults"]:
        if gfn >= DIMM_AT // PAGE_SIZE:
            faults[gfn] = faults.get(gfn, 0) + count
    most = max(faults, key=lambda gfn: faults[gfn], default=0)
    return Counts(
        failed=sum(count for _, error, count in seen["exits"] if error == -EFAULT),
        gfn=most,
        faults=faults.get(most, 0),
        deeds=tuple(deed for deed in policy.deeds("".join(seen["tails"])) if deed.gpa is not None),
    )
