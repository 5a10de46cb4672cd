"""Thirty nights that never were, for looking at the report: ``python made_up.py DIRECTORY``.

One kernel of each sort, flips, flakes, trouble, a night that was left out, and slow boots; tonight
one case is worse and one is better. The evidence of a case is recorded (tests/observations).
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from hostfault.nightly import finish
from hostfault.nightly.baseline import choose
from hostfault.nightly.digest import digest
from hostfault.nightly.news import Kind
from hostfault.nightly.results import Key, Result, Status
from hostfault.nightly.store import Night, NightStore

OBSERVATIONS = Path(__file__).parents[2] / "observations"
KERNELS = ("local", "6.1", "6.12", "7.3.4", "7.3.4+fail-at-once", "next")
RELEASES = {"local": "6.1.0-50-amd64", "6.1": "6.1.0-50-cloud-amd64", "next": "7.4.0-rc2-00071"}
CASES = (
    *(f"test_control.py::test_control[virtiofs-dax-{c}-apf]" for c in ("none-load", "none-store")),
    *(f"test_control.py::test_control[virtiofs-dax-guest-{a}-apf]" for a in ("load", "store")),
    *(
        f"test_truncate.py::test_truncate[virtiofs-dax-{fault}-{access}-{apf}]"
        for apf in ("apf", "noapf")
        for fault in ("zero", "middle")
        for access in ("load", "store")
    ),
)
FIRST = 1792450800.0  # 2026-10-20, at night
DAY = 86400.0
SPINS = "{} faults on gfn 0xf8008 in 0.2 s, task at 0x4016b5 never moved"
RECORDED = {
    "spin": "spin.apf-7.3.4.json",
    "vm-exit": "vm-exit.fail-at-once-7.3.4.json",
    "task-error": "task-error.by-guest-7.3.4.json",
    "ok": "ok.load-7.3.4.json",
    "vmm-death": "vmm-death.killed-7.3.4.json",
    "stall": "stall.mutant-loses-the-wakeup-7.3.4.json",
}
SAID = {
    "ok": "load returned 0x88, as it must",
    "task-error": "SIGBUS, si_code 2, si_addr 0x7f7b5404c000, at 0x4016b5",
    "vm-exit": "QEMU stopped the VM: internal-error, Convert non guest_memfd backed memory region",
    "vmm-death": "QEMU ended with SIGSEGV: (qemu) <script>alert('a guest said this')</script>",
    "stall": "nothing faults and nothing moves for 5 samples",
}


def usual(kernel: str, case: str) -> tuple[Status, str]:
    """What a case says in an ordinary night."""
    if "control" in case:
        return Status.PASSED, "ok" if "-none-" in case else "task-error"
    if kernel in ("7.3.4+fail-at-once", "next"):
        return Status.PASSED, "vm-exit"
    return (Status.FAILED if kernel == "local" else Status.KNOWN), "spin"


def result(
    kernel: str, case: str, outcome: Status, verdict: str, at: float, dice: random.Random
) -> Result:
    said = SAID.get(verdict) or SPINS.format(dice.randint(100, 320))
    slow = 1.8 if at > FIRST + 22 * DAY else 1.0
    phases = {
        "restore": dice.uniform(0.08, 0.2),
        "host ssh": dice.uniform(0.3, 0.5),
        "guest ssh": slow * dice.uniform(0.3, 0.6),
        "arm": dice.uniform(0.3, 0.4),
        "touch to verdict": dice.uniform(0.3, 1.2),
        "tear-down": 0.03,
    }
    release = RELEASES.get(kernel, f"{kernel.split('+')[0]}+deb13-cloud-amd64")
    record: dict[str, Any] = {
        "verdict": verdict,
        "summary": said,
        "accepted": outcome is Status.PASSED,
        "known_issue": "kvm-apf-error" if outcome is Status.KNOWN else None,
        "host_kind": "local" if kernel == "local" else "emulated",
        "host_kernel": {"name": kernel, "release": release, "packaged": kernel in "6.1 6.12 7.3.4"},
        "host_release": release,
        "qemu": {"source": "image", "version": "11.1.3"},
        "backing": "virtiofs-dax",
        "async_pf": "noapf" not in case,
        "vcpus": 1,
        "recovery": "none",
        "seconds": {name: round(seconds, 3) for name, seconds in phases.items()},
        "evidence": [
            f"KVM tracepoint kvm_page_fault: {said}",
            "QMP query-stats of the vCPUs: pf_taken +360, pf_guest +360, pf_fixed +0",
            "QMP query-status: running",
            'probe: no outcome, last step: {"step":"touching"}',
        ],
    }
    seconds = sum(phases.values())
    return Result(kernel, case, outcome, 1, verdict, said, "", at, seconds, "", record)


def trouble(kernel: str, case: str, reason: str, said: str, at: float, attempt: int) -> Result:
    outcome = Status.TIMEOUT if reason == "DeadlineError" else Status.HARNESS
    return Result(kernel, case, outcome, attempt, "", said, reason, at, 31.0)


def fill(store: NightStore, nights: int = 30) -> str:
    """Make the nights; returns the name of the last."""
    dice = random.Random(7)
    cases = [f"tests/dax/{case}" for case in CASES]
    name = ""
    for number in range(nights):
        if number == 17:
            continue  # the runner was off
        at = FIRST + number * DAY
        tonight = number == nights - 1
        found: list[Result] = []
        kernels = [each for each in KERNELS if each != "next" or number > 8]
        for kernel in kernels:
            for case in cases:
                found += _runs(kernel, case, number, tonight, at, dice)
        name = store.new_name(at)
        left = [Key("next", cases[-1])] if tonight else []
        found = [each for each in found if each.key not in left]
        night = Night(
            name=name,
            set="nightly",
            kernels={each: each for each in kernels},
            minutes=45.0,
            began=at,
            spent=60 * dice.uniform(28, 41),
            cases=dict.fromkeys(kernels, cases),
            left=left,
            runner="lab-epyc-3",
            notes=["next is kvm/next of /src/linux, commit " + "0123456789" * 4]
            if "next" in kernels
            else [],
        )
        store.save(night)
        if tonight:
            found = [_with_evidence(store, name, each) for each in found]
        baseline = choose("last-green", store, name)
        if number == 0:  # the local kernel spins, and somebody has accepted that
            store.save_results(name, found)
            store.save(finish.accepted(night))
            night = finish.accepted(night)
        if tonight or number == nights - 2:
            finish.finish(store, night, found, baseline)
        else:
            store.save_results(name, found)
            of_night = digest(store, night, found, baseline)
            worse = [item.result.key for item in of_night.of(Kind.WORSE)]
            store.save(
                dataclasses.replace(
                    night, worse=worse, code=of_night.code, finished=at + night.spent
                )
            )
    return name


def _runs(
    kernel: str, case: str, number: int, tonight: bool, at: float, dice: random.Random
) -> list[Result]:
    outcome, verdict = usual(kernel, case)
    if tonight and kernel == "6.12" and "zero-store-apf" in case:
        return [result(kernel, case, Status.FAILED, "vmm-death", at, dice)]
    if tonight and kernel == "next" and "middle-load-apf" in case:
        outcome, verdict = Status.PASSED, "task-error"
    if kernel == "7.3.4+fail-at-once" and "zero-load-noapf" in case and number in (11, 12, 13):
        outcome, verdict = Status.FAILED, "spin"
    if tonight and kernel == "6.1" and case.endswith("zero-load-noapf]"):
        said = "waited 120.0 s for the guest to boot; last saw: HOSTFAULT-INIT <b>mounted</b>"
        return [trouble(kernel, case, "DeadlineError", said, at, n) for n in (1, 2)]
    if dice.random() < 0.012:
        said = "the agent went away: the emulated host's QEMU ended with code -9"
        first = trouble(kernel, case, "ConnectionLostError", said, at, 1)
        again = result(kernel, case, outcome, verdict, at, dice)
        return [first, dataclasses.replace(again, attempt=2)]
    if tonight and kernel == "next" and "guest-load" in case:
        first = result(kernel, case, Status.FAILED, "stall", at, dice)
        return [
            first,
            dataclasses.replace(result(kernel, case, outcome, verdict, at, dice), attempt=2),
        ]
    return [result(kernel, case, outcome, verdict, at, dice)]


def _with_evidence(store: NightStore, night: str, each: Result) -> Result:
    name = re.sub(r"[^\w.]+", "-", f"{each.kernel}-{each.case}-{each.attempt}")
    folder = f"runs/001-all/tests/{name}"
    place = store.folder(night) / folder
    place.mkdir(parents=True)
    if each.outcome.is_trouble:
        (place / "error.txt").write_text(f"{each.reason}: {each.summary}\n")
        return dataclasses.replace(each, folder=folder)
    observation = json.loads((OBSERVATIONS / RECORDED[each.verdict]).read_text())
    (place / "observation.json").write_text(json.dumps(observation))
    (place / "registers.txt").write_text(observation.get("registers") or "")
    (place / "guest-console.log").write_text("HOSTFAULT-GUEST READY\n</pre><script>x()</script>\n")
    return dataclasses.replace(each, folder=folder)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    print(where / fill(NightStore(where)) / "report.html")
