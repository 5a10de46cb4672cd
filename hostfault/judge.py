"""Judges recorded observations again: by today's rules, without any virtual machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.case.folder import OBSERVATION, VERDICT
from hostfault.case.model import Observation, Scenario, observation_from_json
from hostfault.case.verdict import final_verdict
from hostfault.plumbing.errors import HostfaultError
from hostfault.plumbing.text import harmless
from hostfault.report.table import Row, Tone, render

AGREE, DIFFERS, TROUBLE = 0, 1, 2  # exit codes
NOTHING = "nothing proven"


@dataclass(frozen=True)
class Judgement:
    """What an observation says today, and what was made of it when it was recorded."""

    folder: Path
    scenario: Scenario
    today: str  # a verdict, or "nothing proven"
    summary: str
    recorded: str  # the same as it was written then; "" if nobody wrote it

    @property
    def differs(self) -> bool:
        """Whether today's rules say something else."""
        return self.recorded not in ("", self.today)


def main() -> int:
    """Judge what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hostfault judge", description=__doc__)
    parser.add_argument("command", choices=("judge",))
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="of tests, or of whole runs"
    )
    options = parser.parse_args()
    try:
        found = [judged(folder) for each in options.folders for folder in folders_of(each)]
    except (OSError, ValueError) as error:
        print(f"hostfault judge: {error}", file=sys.stderr)
        return TROUBLE
    if not found:
        print(f"hostfault judge: no {OBSERVATION} there", file=sys.stderr)
        return TROUBLE
    for line in report(found):
        print(line)
    return DIFFERS if any(each.differs for each in found) else AGREE


def folders_of(path: Path) -> Iterator[Path]:
    """The test folders at or below a path, by name."""
    yield from sorted(each.parent for each in path.rglob(OBSERVATION))


def judged(folder: Path) -> Judgement:
    """Judge the observation of a test. Raises OSError and ValueError for one that is none."""
    observation = _read(folder / OBSERVATION)
    try:
        verdict = final_verdict(observation)
        today, summary = verdict.kind.value, verdict.summary
    except HostfaultError as error:
        today, summary = NOTHING, str(error).splitlines()[0]
    return Judgement(folder, observation.scenario, today, summary, _recorded(folder))


def _read(path: Path) -> Observation:
    try:
        return observation_from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _recorded(folder: Path) -> str:
    """The verdict that was written; where there is none, the case ended as an error."""
    try:
        written: Any = json.loads((folder / VERDICT).read_text())
    except FileNotFoundError:
        return NOTHING
    return str(written["verdict"]) if isinstance(written, dict) and "verdict" in written else ""


def report(found: Sequence[Judgement], width: int = 200) -> list[str]:
    """The table, and how many say something else today."""
    rows = [
        Row(each.scenario, each.today.upper(), harmless(each.summary), _tone(each), _remark(each))
        for each in found
    ]
    differing = sum(each.differs for each in found)
    lines = [line.text for line in render(rows, width)]
    return [*lines, f"{len(found)} judged, {differing} differ from what was recorded"]


def _tone(judgement: Judgement) -> Tone:
    return "bad" if judgement.differs else "plain"


def _remark(judgement: Judgement) -> str:
    if not judgement.differs:
        return ""
    return f"recorded as {judgement.recorded.upper()}: {judgement.folder}"


if __name__ == "__main__":
    sys.exit(main())
