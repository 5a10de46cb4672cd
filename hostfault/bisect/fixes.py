"""``ci/fixes``: each fix of kernels/patches turns the spin into an exit.

The same tests as for any kernel, with the same verdicts; known issues do not apply.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from hostfault.bisect.children import StepPrograms, Tester
from hostfault.bisect.decide import RunResult, TestOutcome, in_words
from hostfault.case.model import VerdictKind
from hostfault.plumbing.deadline import now, wall_clock
from hostfault.plumbing.errors import BrokenHarnessError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT

KERNELS = ("7.3.4", "6.12")
FIXES = ("error-table", "exit-request", "fail-at-once")
PATIENCE = 1800.0  # seconds for one kernel: built from nothing, and a dozen cases
Test = Callable[[str, Path], RunResult]
ALL_RIGHT, NOT_FIXED, TROUBLE = 0, 1, 2


def main(words: Sequence[str] | None = None) -> int:
    """Test every fix on every kernel; returns the exit code."""
    asked = _parser().parse_args(words)
    return check(_tester(asked).run, asked.kernel or KERNELS, asked.series or FIXES, _folder(asked))


def check(test: Test, kernels: Sequence[str], fixes: Sequence[str], folder: Path) -> int:
    """Print one line for each kernel, and the cases that are not as they must be."""
    worst = ALL_RIGHT
    for name in (f"{kernel}+{fix}" for kernel, fix in product(kernels, fixes)):
        begun = now()
        try:
            run = test(name, folder / name)
        except BrokenHarnessError as error:
            run = RunResult(trouble=str(error))
        wrong = faults_of(run)
        print(
            f"fixes: {name} | {in_words(run)} | {'not as it must be' if wrong else 'fixed'} | "
            f"{now() - begun:.0f} s",
            flush=True,
        )
        for line in wrong:
            print(f"    {line}", flush=True)
        worst = max(worst, _code(run, wrong))
    return worst


def faults_of(run: RunResult) -> list[str]:
    """What speaks against a fix; nothing if every case passed and some of them by an exit."""
    if run.trouble:
        return [run.trouble]
    wrong = [
        f"{test.name}: {test.verdict or test.outcome}: {test.text}"
        for test in run.tests
        if test.outcome is not TestOutcome.PASSED or test.verdict is None
    ]
    if not any(test.verdict is VerdictKind.VM_EXIT for test in run.tests):
        wrong.append("no case ended in vm-exit, so that nothing shows that the fix is there")
    return wrong


def _code(run: RunResult, wrong: Sequence[str]) -> int:
    """A verdict that must not be is the fix's, everything else is trouble."""
    if any(test.outcome is TestOutcome.FAILED and test.verdict is not None for test in run.tests):
        return NOT_FIXED
    return TROUBLE if wrong else ALL_RIGHT


def _tester(asked: argparse.Namespace) -> Tester:
    return Tester(StepPrograms(), asked.k, tuple(asked.pytest), PATIENCE)


def _folder(asked: argparse.Namespace) -> Path:
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    return Path(asked.artifacts).absolute() / moment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/fixes", description=__doc__, epilog="What comes after -- goes to pytest."
    )
    add = parser.add_argument
    add("--kernel", action="append", metavar="NAME", help=f"default: {' and '.join(KERNELS)}")
    add("--series", action="append", metavar="NAME", help=f"default: {', '.join(FIXES)}")
    add("-k", default="dax", metavar="EXPRESSION", help="the tests (default %(default)s)")
    add("--artifacts", default=str(PROJECT / ".hostfault" / "fixes"), metavar="DIR")
    add("pytest", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    end_with(main, "fixes", trouble=TROUBLE)
