"""What broke that is not under test. Pure."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

from hostfault.case.model import Event, Observation
from hostfault.case.vmm import was_injected
from hostfault.case.words import GUEST_OOPS, HOST_OOPS, how_it_ended, last_line, line_around
from hostfault.plumbing.errors import GuestLostError, HostfaultError

OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process|Memory cgroup out of memory")
IN_OWN_GROUP = "oom_memcg=/hostfault-limit"  # in the kernel's log, of hostfault/agent/cgroup.py
OWN_LIMIT = re.compile(
    r"(?s)(?P<who>CPU \d+/KVM|kworker/\S+) invoked oom-killer"
    r".*\b(hva_to_pfn|async_pf_execute)\+.*oom_memcg=/hostfault-limit\b"
)
"""What the kernel logs (mm/oom_kill.c) of an allocation for the guest, by KVM's page fault, in the
cgroup without room that the fault memcg-oom has put QEMU into."""


def trouble(observation: Observation) -> HostfaultError | None:
    """What broke that is not under test, as the error to raise; None if nothing did."""
    if observation.back_end_ended is not None:
        ended = observation.back_end_ended
        how = how_it_ended(ended)
        return HostfaultError(f"the back-end ended ({how}): {last_line(ended.words)}")
    if _host_lost_by_tcg(observation):
        return GuestLostError(
            "the emulated host reset itself without a word of its kernel's, on a CPU that TCG "
            "emulates: that is seen in one case of some hundred"
        )
    if _lost_by_tcg(observation):
        return GuestLostError(
            "the guest reset itself without a word of its kernel's, on a CPU that TCG emulates: "
            "that is seen in one case of some hundred, also in controls"
        )
    qemu = observation.qemu_ended
    if qemu is not None and qemu.signal == signal.SIGKILL and not killed_for_its_limit(observation):
        return _killed(observation)
    return None


def _host_lost_by_tcg(observation: Observation) -> bool:
    """Whether an emulated host came to a triple fault that nothing accounts for; see below."""
    ended = observation.host_ended
    if not observation.on_tcg or ended is None or HOST_OOPS.search(ended.words):
        return False
    host_events = [event for event in observation.events if event.host]
    if any(event.name == "GUEST_PANICKED" for event in host_events):
        return False
    return any(event.data.get("reason") == "guest-reset" for event in host_events)


def _killed(observation: Observation) -> HostfaultError:
    """Why somebody has killed QEMU, which nobody does to himself."""
    if IN_OWN_GROUP in observation.host_log:
        return GuestLostError("QEMU itself wanted memory, at its limit, before its guest did")
    victim = OUT_OF_MEMORY.search(observation.host_log)
    why = line_around(observation.host_log, victim) if victim else "somebody killed it"
    return HostfaultError(f"QEMU was ended by SIGKILL, which says nothing of KVM: {why}")


def killed_for_its_limit(observation: Observation) -> str:
    """The thread for which QEMU was killed if the case's own limit is why; else ""."""
    found = OWN_LIMIT.search(observation.host_log)
    return found["who"] if found else ""


def _lost_by_tcg(observation: Observation) -> bool:
    """Whether a guest on an emulated CPU came to a triple fault that nothing accounts for.

    A kernel that panics says so, on its console or through pvpanic.
    """
    if was_injected(observation):
        return False  # a guest that cannot take a machine check ends so
    if not observation.on_tcg or GUEST_OOPS.search(observation.guest_console):
        return False
    events = list(guest_events(observation))
    if any(event.name == "GUEST_PANICKED" for event in events):
        return False
    reasons = [str(e.data.get("reason", "")) for e in events if e.name in ("RESET", "SHUTDOWN")]
    return "guest-reset" in reasons


def guest_events(observation: Observation) -> Iterator[Event]:
    """Events of the guest's QEMU since the first sample, which is from before the fault."""
    since = observation.samples[0].at if observation.samples else 0.0
    return (e for e in observation.events if not e.host and e.at >= since)
