"""Runs one case of the plan and notes what was said of it."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

from hostfault.case.folder import OBSERVATION
from hostfault.case.model import Observation, to_json
from hostfault.case.verdict import final_verdict
from hostfault.check import acts
from hostfault.check.matrix import NOTHING, CheckedCase
from hostfault.check.plan import Case
from hostfault.host.testbed import ATTEMPTS, Testbed
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import GuestLostError, HostfaultError
from hostfault.run.arm import arm
from hostfault.run.lab import Lab
from hostfault.run.observe import PATIENCE, Recording

log = logging.getLogger(__name__)


def run(lab: Lab, case: Case, folder: Path, busy: int = 0) -> CheckedCase:
    """Run a case; whatever goes wrong is in the result.

    A guest that an emulated CPU loses is tried again, as ci/dax does.
    """
    began = now()
    for attempt in range(1, ATTEMPTS + 1):
        said, words = _once(lab, case, folder / f"attempt-{attempt}")
        if said or not words.startswith(GuestLostError.__name__):
            break
        log.info("attempt %d: %s", attempt, words)
    return CheckedCase(
        seed=case.seed,
        situation=case.situation.name,
        case=str(case),
        truth=case.situation.truth.value if case.situation.truth else NOTHING,
        silence=case.situation.silence,
        said=said,
        words=words,
        seconds=round(now() - began, 1),
        busy=busy,
    )


def _once(lab: Lab, case: Case, folder: Path) -> tuple[str, str]:
    """What was said of it, "" if it was not observed to the end, and its words."""
    try:
        with lab.testbed(case.scenario, folder) as testbed:
            observation = _observe(case, testbed)
    except HostfaultError as error:
        return "", _in_words(error)
    text = json.dumps(to_json(observation), indent=2, ensure_ascii=False)
    (folder / OBSERVATION).write_text(text + "\n")
    try:
        verdict = final_verdict(observation)
    except GuestLostError as error:
        return "", _in_words(error)
    except HostfaultError as error:
        return NOTHING, _in_words(error)
    return verdict.kind.value, verdict.summary


def _observe(case: Case, testbed: Testbed) -> Observation:
    """As :func:`hostfault.run.observe.observe` does, with what the case does meanwhile."""
    doing = acts.SITUATIONS[case.situation.name]
    disturbing = acts.DISTURBANCES[case.disturbance]
    testbed = disturbing.enter(doing.enter(testbed))
    armed = arm(testbed, case.scenario)
    armed = dataclasses.replace(armed, terms=acts.terms_of(case, armed.terms))
    stage = acts.Stage(case, testbed, armed)
    disturbing.inject(stage)
    recording = Recording(testbed, armed)
    recording.begin()
    recording.inject(lambda _: doing.inject(stage))
    recording.touch()
    deadline = Deadline(PATIENCE, "a verdict")
    while not recording.is_over and not deadline.passed():
        recording.step()
        if not recording.is_over:
            recording.do(lambda: doing.meanwhile(stage, deadline.elapsed()))
            recording.do(lambda: disturbing.meanwhile(stage, deadline.elapsed()))
    recording.finish()
    return recording.observation


def _in_words(error: HostfaultError) -> str:
    return f"{type(error).__name__}: {error}"
