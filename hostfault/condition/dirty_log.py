"""KVM logs which pages the guest dirties, as it does while a VM is migrated."""

from __future__ import annotations

import re

from hostfault.case.model import PAGE_SIZE, Observation
from hostfault.condition.base import Plain
from hostfault.guest import boot
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError

SECONDS = 60  # that it is on, QEMU's most; a case is over sooner
LOGGED = 1  # KVM_MEM_LOG_DIRTY_PAGES, of a memslot's flags (linux/kvm.h)
EVENT = "kvm_set_user_memory"  # QEMU's, in accel/kvm/trace-events
_PATIENCE = 20.0  # seconds for QEMU to change its memslots
_TAIL = 65536  # bytes of QEMU's log: a line for each memslot
_SLOT = re.compile(
    rf"{EVENT} .*?flags=0x([0-9a-f]+) gpa=0x([0-9a-f]+) size=0x([0-9a-f]+) .*?ret=(-?\d+)"
)


class DirtyLog(Plain):
    """QMP ``calc-dirty-rate`` by the dirty bitmap: it turns the log of every memslot on.

    With it KVM maps pages of 4 KiB only, and read-only until the guest writes. What QEMU has told
    KVM of a memslot it says itself, by its trace event kvm_set_user_memory.
    """

    name = "dirty-log"

    def begin(self, testbed: Testbed) -> None:
        """Begin to measure how many pages the guest dirties."""
        traced = testbed.recorder.execute("trace-event-get-state", {"name": EVENT})
        if traced[0]["state"] == "unavailable":
            raise MissingCapabilityError(
                "qemu-trace", f"QEMU was built without trace event {EVENT}"
            )
        testbed.recorder.execute("trace-event-set-state", {"name": EVENT, "enable": True})
        testbed.recorder.execute("calc-dirty-rate", {"calc-time": SECONDS, "mode": "dirty-bitmap"})

    def prove(self, testbed: Testbed, gfn: int) -> None:
        """The memslot of the frame has the flag, by what QEMU has told KVM of it last."""
        deadline = testbed.deadline(_PATIENCE, f"the memslot of gfn {gfn:#x} to have a dirty log")
        poll(deadline, lambda: _look(testbed, gfn, deadline), interval=0.05)

    def prove_held(self, testbed: Testbed, observation: Observation) -> None:
        """QEMU has not ended the measurement yet; if it lives, to say so."""
        if observation.qemu_ended or observation.host_ended:
            return
        status = testbed.recorder.execute("query-dirty-rate")["status"]
        if status != "measuring":
            raise HostfaultError(f"the condition {self.name} did not hold: it is {status}")


def _look(testbed: Testbed, gfn: int, deadline: Deadline) -> bool | None:
    text = testbed.agent.tails([f"{boot.NAME}.log"], _TAIL)[0]
    deadline.saw(text[-400:])
    return is_logged(text, gfn) or None


def is_logged(text: str, gfn: int) -> bool:
    """Whether QEMU has told KVM last to log the memslot of a guest frame; ``text`` is its log."""
    flags = 0
    for found in _SLOT.finditer(text):
        begin, size = int(found[2], 16), int(found[3], 16)
        if found[4] == "0" and begin <= gfn * PAGE_SIZE < begin + size:
            flags = int(found[1], 16)
    return bool(flags & LOGGED)
