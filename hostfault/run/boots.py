"""How often an emulated host and the guest in it boot: counted, and none tried again."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault.case.model import Scenario
from hostfault.case.settings import CPUS, Settings
from hostfault.host.emulated import EmulatedHost
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import HostfaultError
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
_SUBERROR = re.compile(r"KVM internal error\. Suberror: \d+")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Boot:
    """What became of one boot, from QEMU's start to the saved snapshot."""

    kernel: str  # as it was asked for
    seconds: float
    why: str  # why it failed; "": it did not


def boots(
    kernels: Sequence[str],
    count: int,
    folder: Path,
    say: Callable[[str], None],
    cpu: str = CPUS[0],
) -> list[Boot]:
    """Boot each kernel so many times on that CPU; ``folder`` gets the logs.

    Raises :class:`HostfaultError` where a kernel or an image cannot be had, before anything boots:
    the boots of many kernels take hours.
    """
    asked = [Settings(host="emulated", cpu=cpu, host_kernel=kernel) for kernel in kernels]
    for settings in asked:
        with Lab(settings) as lab:
            lab.facts()
    found = []
    for kernel, settings in zip(kernels, asked, strict=True):
        with Lab(settings) as lab:
            assert isinstance(lab.host, EmulatedHost)
            for number in range(1, count + 1):
                boot = _boot(lab.host, kernel, folder / f"{kernel}-{number}")
                say(f"{kernel}, boot {number}: {boot.why or 'good'}, {boot.seconds:.1f} s")
                found.append(boot)
    return found


def _boot(host: EmulatedHost, kernel: str, folder: Path) -> Boot:
    began = now()
    try:
        host.boot_alone(SCENARIO, folder)
    except HostfaultError as error:
        return Boot(kernel, now() - began, reason(str(error)))
    return Boot(kernel, now() - began, "")


def reason(words: str) -> str:
    """What is the same of like errors: KVM's own word, else the first line without its numbers."""
    if suberror := _SUBERROR.search(words):
        return suberror.group()
    return _NUMBER.sub("N", words.partition("\n")[0])[:120]


def boots_table(found: Sequence[Boot]) -> str:
    """A line for each kernel: how many boots, how many failed, seconds of the others, and why."""
    lines = [f"{'host kernel':14}{'boots':>7}{'failed':>8}{'seconds':>9}  why"]
    for kernel in dict.fromkeys(boot.kernel for boot in found):
        of_it = [boot for boot in found if boot.kernel == kernel]
        good = [boot.seconds for boot in of_it if not boot.why]
        median = f"{statistics.median(good):.1f}" if good else "-"
        why = Counter(boot.why for boot in of_it if boot.why)
        words = "; ".join(f"{times} x {each}" for each, times in why.most_common())
        failed = sum(why.values())
        lines.append(f"{kernel:14}{len(of_it):7}{failed:8}{median:>9}  {words}".rstrip())
    return "\n".join(lines)
