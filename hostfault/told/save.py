"""A guest is saved while a page of its memory is gone, and another one when that is back.

A snapshot and a migration read the whole of a guest's memory. What is saved ends with the host.
"""

from __future__ import annotations

import signal
from pathlib import Path

from hostfault.case.counting import failed_exits
from hostfault.case.model import Observation
from hostfault.case.verdict import final_verdict
from hostfault.guest import boot
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, DeadlineError, HostfaultError
from hostfault.run.arm import arm
from hostfault.run.lab import Lab
from hostfault.run.observe import observe
from hostfault.told.outcome import Outcome, Ran
from hostfault.told.plan import Measurement

FILE = "saved"  # in the agent's directory
PATIENCE = 60.0  # seconds for one
SAVED = "is saved"


def run(lab: Lab, cell: Measurement, folder: Path) -> Outcome:
    """Have the case and save its guest, and once more in a guest that has its page back.

    Raises :class:`HostfaultError` if the case proves nothing, or QEMU does not come to an end
    with a migration.
    """
    seen, gone = _case(lab, cell, folder / "gone", back=False)
    _, back = _case(lab, cell, folder / "back", back=True)
    return Outcome(
        verdict=final_verdict(seen).kind.value,
        summary=f"{gone}; with the page back: {back}",
        told=sum(each.count for each in failed_exits(seen)),
        ran=Ran(f"{seen.qemu_version} {seen.qemu_build_id}", seen.host_release, seen.kvm_build_id),
    )


def _case(lab: Lab, cell: Measurement, folder: Path, *, back: bool) -> tuple[Observation, str]:
    with lab.testbed(cell.scenario, folder) as testbed:
        armed = arm(testbed, cell.scenario)
        path = armed.scene.page.path
        size = testbed.agent.stat(path)["size"]
        seen = observe(testbed, armed, undo=back)
        if back:  # the whole file: undoing gives the one page back
            testbed.agent.truncate(path, size)
        return seen, _save(testbed)


def _save(testbed: Testbed) -> str:
    """Save the guest; returns what came of that.

    Raises :class:`~hostfault.plumbing.errors.DeadlineError` if nothing comes of it.
    """
    recorder, directory = testbed.recorder, testbed.agent.hello()["dir"]
    deadline = Deadline(PATIENCE, "the guest to be saved")

    def state() -> str | None:
        answer = recorder.execute("query-migrate")
        deadline.saw(answer)
        if answer.get("status") == "failed":
            return f"is not saved: {answer.get('error-desc', 'no reason')}"
        return SAVED if answer.get("status") == "completed" else None

    try:
        recorder.execute("migrate", {"uri": f"file:{directory}/{FILE}"})
        return poll(deadline, state)
    except ConnectionLostError as error:
        return _how_qemu_ended(testbed, error)
    except DeadlineError:
        raise
    except HostfaultError as refused:
        return f"is not saved: {str(refused).splitlines()[0]}"


def _how_qemu_ended(testbed: Testbed, lost: ConnectionLostError) -> str:
    """How it ended; raises if it has not."""
    deadline = Deadline(PATIENCE, f"QEMU to end: {lost}")
    code = poll(deadline, lambda: testbed.agent.ended(boot.NAME))
    return f"ends QEMU by {signal.Signals(-code).name}" if code < 0 else f"ends QEMU with {code}"
