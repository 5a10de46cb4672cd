"""One step of ``git bisect run``: build what is checked out, test it, and say what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hostfault.bisect.children import BuiltKernel, StepPrograms, build, compile_afresh
from hostfault.bisect.codes import BisectTerms, Decision
from hostfault.bisect.repository import Commit, Repository
from hostfault.bisect.trial import Bench, Trial
from hostfault.case.model import to_json
from hostfault.plumbing.deadline import now
from hostfault.plumbing.errors import BrokenHarnessError, HostfaultError, UntestableError
from hostfault.report.artifacts import write_json


@dataclass(frozen=True)
class Step:
    """What is known of one commit; step.json in its folder has the same."""

    commit: str
    subject: str
    decision: Decision
    built: str  # in which way, or why it does not build
    build_seconds: float
    verdicts: str = ""  # run by run
    test_seconds: float = 0.0

    def line(self, terms: BisectTerms) -> str:
        """The line that the step prints."""
        tests = f"{self.verdicts}, {self.test_seconds:.0f} s" if self.verdicts else "no tests"
        return (
            f"bisect: {self.commit[:12]} | {self.built}, {self.build_seconds:.0f} s | {tests} | "
            f"{terms.word(self.decision)} | {self.subject}"
        )


def step(
    repository: Repository, bench: Bench, programs: StepPrograms, folder: Path, patience: float
) -> Step:
    """Decide about the commit that is checked out; ``patience`` is for its build, in seconds.

    Raises :class:`BrokenHarnessError`, and :class:`~hostfault.plumbing.errors.UsageError` for a
    tree that is no commit of a kernel.
    """
    repository.check()
    commit = repository.commit()
    kernel = f"tree:{repository.root}"
    bench.say(f"building {commit.short}")
    begun = now()
    known = Step(commit.id, commit.subject, Decision.UNTESTABLE, "", 0.0)
    try:
        built = build(programs, kernel, folder, patience)
    except UntestableError as error:
        seconds = now() - begun
        _cross_check(bench, programs, folder, patience, error)
        step = replace(known, built=f"{_short(str(error))} ({folder})", build_seconds=seconds)
    else:
        seconds = now() - begun
        trial = bench.test(kernel, folder)
        _check_what_ran(repository, commit, built, trial)
        step = replace(
            known,
            decision=trial.decision,
            built=built.how,
            build_seconds=seconds,
            verdicts=trial.words,
            test_seconds=trial.seconds,
        )
    write_json(folder / "step.json", to_json(step))
    return step


def _cross_check(
    bench: Bench, programs: StepPrograms, folder: Path, patience: float, error: UntestableError
) -> None:
    """Raise unless the stock kernel's own KVM can be compiled right now, on this machine."""
    (folder / "does-not-build.txt").write_text(f"{error}\n")
    bench.say(f"compiling KVM of {bench.stock}, to see whether the compiler works")
    try:
        compile_afresh(programs, bench.stock, folder / "cross-check", patience)
    except HostfaultError as again:
        raise BrokenHarnessError(
            f"{error}\nand KVM of the packaged {bench.stock} cannot be compiled either: {again}"
        ) from error


def _check_what_ran(
    repository: Repository, commit: Commit, built: BuiltKernel, trial: Trial
) -> None:
    """Raise if the verdicts are of another kernel than the commit's."""
    ran = {test.kernel for run in trial.runs for test in run.tests if test.verdict is not None}
    if ran - {built.identity}:
        raise BrokenHarnessError(f"built was {built.identity}, tested {', '.join(sorted(ran))}")
    repository.check()
    if repository.commit() != commit:
        raise BrokenHarnessError(f"another commit than {commit.short} was checked out meanwhile")


def _short(text: str) -> str:
    """What is worth a place in the step's line: the first error, or else the first line."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if "error:" in line), lines[0])[:200]
