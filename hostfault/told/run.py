"""One cell: a case as ci/dax runs it, and afterwards the page once more, in the same guest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hostfault import __version__
from hostfault.case.counting import cpu_share, failed_exits, frame_growth
from hostfault.case.model import Observation, RecoveryKind, VmmDeed
from hostfault.case.verdict import final_verdict
from hostfault.case.words import in_words
from hostfault.fault import FAULTS
from hostfault.guest import probe
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError
from hostfault.run.arm import STORED, Armed, arm
from hostfault.run.lab import Lab
from hostfault.run.observe import observe
from hostfault.told import crowd, exits, own, save
from hostfault.told.outcome import Outcome
from hostfault.told.plan import Measurement

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of a cell in which the harness fails
AGAIN = "the page once more"
# How the cells of a table are measured that are more than a case.
NO_PLAIN_CASES: Mapping[str, Callable[[Lab, Measurement, Path], Outcome]] = {
    "crowds": crowd.run,
    "own": own.run,
    "saves": save.run,
    "exits": exits.run,
}


@dataclass(frozen=True)
class ToldRun:
    """What was found; plain data that goes to JSON."""

    cell: str  # its key
    command: str  # that measures it again
    verdict: str  # or "error", for trouble of the harness
    summary: str
    told: int  # KVM_RUN failed with an error, before the fault was undone
    faults: int  # on the page's gfn, likewise
    cpu_share: float  # of a core, by the vCPU threads since the access
    deeds: tuple[VmmDeed, ...]  # what the policy did
    guest_answers: bool | None  # over SSH, after the case
    recovery: str  # what followed when the fault was undone, where the access had not ended
    again: str  # where it had: what another task finds after the fault was undone
    back: str = ""  # what the access then got, and what the host has at the place
    qemu_ran: str = ""  # version and build id of the guest's
    host_release: str = ""
    kvm_build_id: str = ""
    version: str = ""  # of hostfault


def run(lab: Lab, cell: Measurement, folder: Path) -> ToldRun:
    """Measure a cell. Trouble of the harness is tried again, and then a result, too."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _run_once(lab, cell, folder / f"attempt-{attempt}")
        except MissingCapabilityError:
            raise
        except HostfaultError as error:
            log.info("%s, attempt %d: %s", cell.key, attempt, error)
            trouble = str(error).splitlines()[0]
    return ToldRun(
        cell.key, _command(cell), "error", trouble, 0, 0, 0.0, (), None, recovery="", again=""
    )


def _run_once(lab: Lab, cell: Measurement, folder: Path) -> ToldRun:
    if cell.table in NO_PLAIN_CASES:
        found = NO_PLAIN_CASES[cell.table](lab, cell, folder)
        return ToldRun(
            cell=cell.key,
            command=_command(cell),
            verdict=found.verdict,
            summary=found.summary,
            told=found.told,
            faults=0,
            cpu_share=found.cpu_share,
            deeds=found.deeds,
            guest_answers=found.guest_answers,
            recovery=found.recovery,
            again="",
            qemu_ran=found.ran.qemu,
            host_release=found.ran.host_release,
            kvm_build_id=found.ran.kvm_build_id,
            version=__version__,
        )
    with lab.testbed(cell.scenario, folder) as testbed:
        armed = arm(testbed, cell.scenario)
        seen = observe(testbed, armed)
        verdict = final_verdict(seen)
        again = _again(testbed, armed, seen)
    return ToldRun(
        cell=cell.key,
        command=_command(cell),
        verdict=verdict.kind.value,
        summary=verdict.summary,
        told=sum(each.count for each in failed_exits(seen)),
        faults=sum(each.count for each in frame_growth(seen) if each.gfn == seen.expected_gfn),
        cpu_share=round(cpu_share(seen), 2),
        deeds=tuple(deed for deed in seen.vmm_deeds if deed.gpa is not None),
        guest_answers=seen.guest_answers,
        recovery=seen.recovery.kind.value if seen.recovery else "",
        again=again,
        back=_back(seen),
        qemu_ran=f"{seen.qemu_version} {seen.qemu_build_id}",
        host_release=seen.host_release,
        kvm_build_id=seen.kvm_build_id,
        version=seen.version,
    )


def _back(seen: Observation) -> str:
    """What an access got that went on, and what the host has where it read or wrote."""
    recovery = seen.recovery
    if recovery is None or recovery.kind not in (
        RecoveryKind.GOES_ON,
        RecoveryKind.GOES_ON_AFTER_CONT,
    ):
        return ""
    held = "no byte" if recovery.stored_byte is None else f"{recovery.stored_byte:#x}"
    return f"{recovery.words}, and the host has {held}"


def _command(cell: Measurement) -> str:
    return f"ci/told --only {cell.key}"


def _again(testbed: Testbed, armed: Armed, seen: Observation) -> str:
    """Give the page back, and have another task of the same guest load it."""
    if seen.probe.outcome is None or not seen.guest_answers:
        return ""
    fault = FAULTS[armed.scenario.fault]
    fault.undo(armed.scene)
    task, deadline = probe.Probe(probe.start(testbed.guest)), Deadline(20.0, AGAIN)
    task.request(armed.scene.view, "load", STORED, page_first=True)
    try:
        task.arm(deadline)
        task.go()
        while task.listen(0.1):
            deadline.check()
    except HostfaultError as error:
        return f"no second touch: {str(error).splitlines()[-1]}"
    outcome = task.report().outcome
    return "no answer" if outcome is None else in_words(outcome)
