"""How things are said: ends, errors and reports by name, the telling line of a log. Pure."""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator

from hostfault.case.model import PLAIN, Ended, Observation, Outcome, Scenario

GUEST_OOPS = re.compile(
    r"Kernel panic - not syncing|Oops: |kernel BUG at |BUG: unable to handle|"
    r"BUG: kernel NULL pointer"
)
HOST_OOPS = re.compile(GUEST_OOPS.pattern + r"|soft lockup|hung_task|rcu: INFO: .* stall")
HOST_COMPLAINT = re.compile(
    r"WARNING: CPU:|WARNING: .* at |BUG: |Oops: |KASAN: |UBSAN: |INFO: possible recursive locking|"
    r"possible circular locking|suspicious RCU usage|general protection fault"
)
VMM_WORDS = re.compile(
    r"kvm run failed|KVM internal error|Convert non guest_memfd|error:", re.IGNORECASE
)


def in_words(outcome: Outcome) -> str:
    """What the probe reported, in a few words."""
    match outcome.kind:
        case "signal":
            return signal_name(outcome.value)
        case "errno":
            return errno_name(outcome.value)
        case kind:
            return f"{kind} {outcome.value:#x}"


def probe_line(observation: Observation) -> str:
    """What the probe reported and its last step, for the evidence."""
    outcome = observation.probe.outcome
    last = observation.probe.steps[-1] if observation.probe.steps else "nothing"
    if outcome is None:
        gone = ", and it is gone" if observation.probe.ended else ""
        return f"probe: no outcome, last step: {last}{gone}"
    return f"probe: {outcome.kind} {outcome.value:#x}, last step: {last}"


def guest_in_words(scenario: Scenario, on: str, off: str) -> str:
    """What kind of guest, and under which condition, where it is not the usual one.

    ``on`` and ``off`` are how it is told whether it uses asynchronous page faults.
    """
    words = [on if scenario.async_pf else off]
    words += [f"{scenario.vcpus} vCPUs"] * (scenario.vcpus != 1)
    words += [scenario.condition] * (scenario.condition != PLAIN)
    return ", ".join(words)


def who(observation: Observation) -> str:
    """Who touches the page."""
    if observation.terms.nested:
        return "the guest's own guest"
    return "the guest's kernel" if observation.terms.by_kernel else "task"


def page_evidence(observation: Observation) -> tuple[str, ...]:
    """What the host had of the page before the fault, where that is more than a page."""
    if not observation.huge_mapped:
        return ()
    size = observation.huge_mapped >> 10
    return (f"before the fault QEMU had {size} KiB of the file mapped, all by huge pages (smaps)",)


def registers_line(observation: Observation) -> str:
    """Where the vCPU is by its registers, and whether that is the probe's instruction."""
    found = re.search(r"\b[RE]IP=([0-9a-f]+)", observation.registers + observation.qemu_log)
    if found is None:
        return "vCPU registers: not told"
    rip = int(found[1], 16)
    whose = "the probe's instruction" if rip == observation.probe.rip else "not the probe's"
    return f"vCPU registers: rip {rip:#x}, {whose}"


def liveness(observation: Observation) -> Iterator[str]:
    """Whether the guest answers, where that was asked."""
    if observation.guest_answers is not None:
        yield f"guest: {'answers' if observation.guest_answers else 'does not answer'} over SSH"


def how_it_ended(ended: Ended) -> str:
    """A program's exit code or signal."""
    return f"exit code {ended.code}" if ended.signal is None else signal_name(ended.signal)


def signal_name(number: int) -> str:
    """A signal's name; its number, if it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def errno_name(number: int) -> str:
    """An errno with its name."""
    return f"errno {number} ({errno.errorcode.get(number, 'unknown')})"


def last_function(stack: str) -> str:
    """Where a thread is: the first line of /proc/TID/stack, without its offset."""
    return next(iter(functions(stack)), "the kernel")


def functions(stack: str) -> tuple[str, ...]:
    """The functions of a /proc/TID/stack, innermost first."""
    return tuple(re.findall(r"([\w.]+)\+0x", stack))


def last_line(text: str) -> str:
    """The last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "(nothing)"


def telling_line(pattern: re.Pattern[str], text: str) -> str:
    """The first line that the pattern knows, else the last one."""
    found = pattern.search(text)
    return line_around(text, found) if found else last_line(text)


def line_around(text: str, found: re.Match[str]) -> str:
    """The whole line of something found."""
    start = text.rfind("\n", 0, found.start()) + 1
    return text[start:].splitlines()[0].strip()
