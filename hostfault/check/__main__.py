"""``ci/verdict-check``: random cases whose truth is known, and whether the verdicts are right.

Each case is made by its seed alone: ``--case 1/57`` runs that one again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from hostfault.case.settings import Settings
from hostfault.check import matrix, plan
from hostfault.check.matrix import CheckedCase, Standing
from hostfault.check.run import run
from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.process import spawn
from hostfault.plumbing.program import end_with
from hostfault.plumbing.progress import heard_by
from hostfault.plumbing.project import PROJECT
from hostfault.run.lab import Lab

USAGE = 4  # pytest's code for it
RESULTS = "results.jsonl"


def main(words: Sequence[str] | None = None) -> int:
    """Run what was asked for, or add up what was run; returns the exit code."""
    asked = _parser().parse_args(words)
    if asked.add_up:
        results = [each for path in asked.add_up for each in read(path)]
    else:
        planned = _planned(asked)
        folder = _folder(asked.artifacts)
        results = check(planned, folder, asked.busy)
        print(f"logs: {folder}")
    print(matrix.report(results))
    return matrix.exit_code(results)


def check(planned: Sequence[plan.Case], folder: Path, busy: int = 0) -> list[CheckedCase]:
    """Run cases, with ``busy`` processes for each core beside them; ``folder`` gets all evidence.

    The results come in the order of the plan.
    """
    results: dict[str, CheckedCase] = {}
    with _kept_busy(busy, folder), heard_by(_hear):
        for kernel, group in groupby(plan.in_order(planned), key=lambda case: case.kernel):
            with Lab(Settings(host="emulated", host_kernel=kernel)) as lab:
                for case in group:
                    place = folder / case.seed.replace("/", "-")
                    results[case.seed] = result = run(lab, case, place, busy)
                    _keep(result, folder / RESULTS)
                    _say(_line(result))
    return [results[case.seed] for case in planned]


def read(path: Path) -> list[CheckedCase]:
    """The results that an earlier run has left. Raises OSError, ValueError, TypeError."""
    return [CheckedCase(**json.loads(line)) for line in path.read_text().splitlines()]


@contextmanager
def _kept_busy(each: int, folder: Path) -> Iterator[None]:
    """So many processes for each core that do nothing but run."""
    with ExitStack() as stack:
        for number in range(each * (os.cpu_count() or 1)):
            argv = [sys.executable, "-c", "while True: pass"]
            stack.enter_context(spawn(argv, log=folder / f"busy-{number}.log"))
        yield


def _keep(result: CheckedCase, path: Path) -> None:
    with path.open("a") as stream:
        stream.write(json.dumps(asdict(result)) + "\n")


def _line(result: CheckedCase) -> str:
    mark = "" if result.standing is Standing.RIGHT else f"   {result.standing.value.upper()}"
    said = result.said or "error"
    first = result.words.partition("\n")[0][:160]
    return f"{result.seed} {result.case}: {said} ({result.seconds} s){mark}\n    {first}"


def _say(text: str) -> None:
    print(text, flush=True)


def _hear(text: str) -> None:
    if sys.stderr.isatty():
        print(f"    … {text}", file=sys.stderr)


def _planned(asked: argparse.Namespace) -> list[plan.Case]:
    named = [each for each in plan.SITUATIONS if not asked.only or each.name in asked.only]
    if unknown := set(asked.only) - {each.name for each in named}:
        known = ", ".join(each.name for each in plan.SITUATIONS)
        raise UsageError(f"no such situation: {', '.join(unknown)}; there are {known}")
    if asked.case:
        return [plan.case_of(seed, named) for seed in asked.case]
    if asked.number is None:
        raise UsageError("say how many cases, or name one with --case SEED/NUMBER")
    return plan.cases(asked.seed, asked.first, asked.number, named)


def _folder(artifacts: str) -> Path:
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    folder = Path(artifacts).absolute() / moment
    folder.mkdir(parents=True)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/verdict-check",
        description=__doc__,
        epilog="Exit codes: 0 no wrong verdict; 1 a wrong one; 2 more trouble than 0.5 % of the "
        "cases, or than one; 4 wrong options.",
    )
    add = parser.add_argument
    add("number", nargs="?", type=int, metavar="N", help="how many cases")
    add("--seed", type=int, default=1, help="which ones (default 1)")
    add("--first", type=int, default=0, metavar="NUMBER", help="begin with this one (default 0)")
    add("--case", action="append", default=[], metavar="SEED/NUMBER", help="this case alone")
    add("--only", action="append", default=[], metavar="SITUATION", help="draw from these alone")
    add("--busy", type=int, default=0, metavar="N", help="busy processes beside it for each core")
    add("--artifacts", default=str(PROJECT / ".hostfault" / "verdict-check"), metavar="DIR")
    add(
        "--add-up",
        nargs="+",
        type=Path,
        default=[],
        metavar=RESULTS,
        help="run nothing: report of what earlier runs have left",
    )
    return parser


if __name__ == "__main__":
    end_with(main, "verdict-check", trouble=matrix.TROUBLE, usage=USAGE)
