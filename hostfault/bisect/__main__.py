"""``ci/bisect``: see docs/bisecting.md.

Whatever happens in here, only a decision may end with a code below 128.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hostfault.bisect.children import StepPrograms, Tester
from hostfault.bisect.codes import CANNOT_BE_TESTED, STOP, TERMS, BisectTerms, Decision
from hostfault.bisect.decide import Rule
from hostfault.bisect.packages import Boundary, between, search
from hostfault.bisect.repository import Repository
from hostfault.bisect.step import step
from hostfault.bisect.trial import Bench
from hostfault.case.model import VerdictKind
from hostfault.kernel.catalog import load, newest
from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.errors import HostfaultError, UsageError
from hostfault.plumbing.project import PROJECT

VERDICT_HELP = "only this one counts as bad; may be repeated (default: every one that fails)"
FOUND, NOTHING_TO_FIND = 0, 1  # with --packages, where git is not asked


class Signalled(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str], programs: StepPrograms) -> int:
    """Do what is asked, and return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        asked = _parser().parse_args(arguments)
        return _packages(asked, programs) if asked.packages else _step(asked, programs)
    except Signalled as error:
        say(f"ended by {signal.Signals(error.number).name}")
        return STOP + error.number
    except SystemExit:  # argparse, and also of --help: nothing was tested
        return STOP
    except HostfaultError as error:
        print(f"bisect: stopped: {error}", file=sys.stderr)
        return STOP
    except BaseException:  # git would take Python's own code, 1, for an answer
        sys.excepthook(*sys.exc_info())
        return STOP


def say(text: str) -> None:
    """Tell what is going on; the one line of the step goes to standard output instead."""
    print(f"... {text}", file=sys.stderr, flush=True)


def _step(asked: argparse.Namespace, programs: StepPrograms) -> int:
    repository = Repository(Path.cwd())
    terms = repository.terms(asked.term)
    folder = _folder(asked, repository.commit().short)
    done = step(repository, _bench(asked, programs), programs, folder, asked.build_timeout)
    print(done.line(terms), flush=True)
    return terms.exit_code(done.decision)


def _packages(asked: argparse.Namespace, programs: StepPrograms) -> int:
    terms = TERMS[asked.term or "good/bad"]
    bench = _bench(asked, programs)
    names = between(list(load()), asked.packages)
    folder = _folder(asked, "packages")

    def test(name: str) -> Decision:
        trial = bench.test(name, folder / name)
        print(
            f"bisect: {name} | {trial.words}, {trial.seconds:.0f} s | {terms.word(trial.decision)}",
            flush=True,
        )
        return trial.decision

    return _tell(search(names, test), names, terms)


def _tell(found: Boundary, names: Sequence[str], terms: BisectTerms) -> int:
    old, new = terms.word(found.old), terms.word(found.new)
    if found.old is found.new:
        print(
            f"bisect: nothing to find: both ends, {names[0]} and {names[-1]}, are {old}; "
            "what lies between was not tested"
        )
        return NOTHING_TO_FIND
    if found.between:
        print(
            f"bisect: {found.older} is {old} and {found.newer} is {new}; between them, "
            f"{', '.join(found.between)} could not be tested"
        )
        return CANNOT_BE_TESTED
    print(f"bisect: {found.newer} is the first that is {new}; {found.older} is still {old}")
    return FOUND


def _bench(asked: argparse.Namespace, programs: StepPrograms) -> Bench:
    rule = Rule(asked.repeat, asked.bad, asked.retries, frozenset(asked.verdict))
    if asked.cross_check not in load():
        raise UsageError(
            f"--cross-check {asked.cross_check}: no packaged kernel; known are {', '.join(load())}"
        )
    tester = Tester(programs, asked.k, tuple(asked.pytest), asked.test_timeout)
    return Bench(tester, rule, asked.cross_check, say)


def _folder(asked: argparse.Namespace, name: str) -> Path:
    """A new directory for the evidence."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    parent = Path(asked.artifacts).absolute()
    folder = parent / f"{moment}_{name}"
    number = 1
    while folder.exists():
        number += 1
        folder = parent / f"{moment}_{name}_{number}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"--artifacts {parent}: {error.strerror}") from error
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/bisect",
        description="Test the kernel tree around the current directory, for git bisect run.",
        epilog="What comes after -- goes to pytest. See docs/bisecting.md.",
    )
    add = parser.add_argument
    add("--packages", metavar="OLD..NEW", help="search packaged kernels instead, without git")
    add("--term", choices=tuple(TERMS), help="default: what the bisection calls its ends")
    add("-k", default="zero-load-apf", metavar="EXPRESSION", help="the tests (%(default)s)")
    add("--repeat", type=int, default=1, metavar="N", help="runs for one kernel (%(default)s)")
    add("--bad", type=int, default=1, metavar="M", help="so many bad ones decide (%(default)s)")
    add("--retries", type=int, default=1, metavar="R", help="for runs that prove nothing")
    add("--verdict", action="append", default=[], type=VerdictKind, help=VERDICT_HELP)
    add("--cross-check", default=newest(), metavar="NAME", help="a packaged kernel that works")
    add("--build-timeout", type=float, default=3600.0, metavar="SECONDS")
    add("--test-timeout", type=float, default=900.0, metavar="SECONDS", help="of one run")
    add("--artifacts", default=str(PROJECT / ".hostfault" / "bisect"), metavar="DIR")
    add("pytest", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)
    return parser


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise once; a second signal must not disturb the clean-up."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Signalled(number)


def run(programs: StepPrograms) -> None:
    """End this process with the code that :func:`main` returns, come what may."""
    code = main(sys.argv[1:], programs)
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads: Python would end with 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = STOP
    sys.exit(code)


if __name__ == "__main__":
    run(StepPrograms())
