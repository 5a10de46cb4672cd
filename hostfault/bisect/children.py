"""The two programs that a step runs, each in a process group of its own and under a deadline.

The deadline is outside of everything under test: a compiler that does not come back, a host that
hangs its QEMU, a pytest that cannot end, all are killed from here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.bisect.decide import RunResult
from hostfault.bisect.results import identity, read
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import BrokenHarnessError, UntestableError
from hostfault.plumbing.process import spawn, tail
from hostfault.plumbing.project import PROJECT

GRACE = 30.0  # seconds that pytest has for its tear-down: an emulated host, its guest, its files
PYTEST_SAYS = {  # pytest's exit codes that no kernel is to blame for
    2: "pytest was interrupted, or could not read the tests",
    4: "pytest was called wrongly",
    5: "no test is selected",
}


@dataclass(frozen=True)
class StepPrograms:
    """What a step runs; the tests of this package have others."""

    build: tuple[str, ...] = (sys.executable, "-P", "-m", "hostfault.bisect.build")
    pytest: tuple[str, ...] = (
        *(sys.executable, "-P", "-m", "pytest"),
        *("-c", str(PROJECT / "pyproject.toml"), "--rootdir", str(PROJECT)),
        str(PROJECT / "tests" / "dax"),
    )


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel that was built."""

    how: str  # "KVM only" | "whole kernel", for people
    identity: str  # see :func:`hostfault.bisect.results.identity`


@dataclass(frozen=True)
class Tester:
    """Runs the selected tests on a kernel."""

    programs: StepPrograms
    select: str  # pytest's -k
    options: tuple[str, ...]  # further ones for pytest
    patience: float  # seconds for one run

    def run(self, kernel: str, folder: Path) -> RunResult:
        """Run them once; ``folder`` must not exist yet and gets everything.

        Raises :class:`BrokenHarnessError` for trouble that cannot be the kernel's.
        """
        junit, log = folder / "junit.xml", folder / "pytest.log"
        folder.mkdir(parents=True)
        deadline = Deadline(self.patience, "the tests to end")
        code = _run(self._command(kernel, folder, junit), log, deadline)
        if code is None:
            return RunResult(trouble=f"the tests had not ended after {self.patience:.0f} s ({log})")
        if code in PYTEST_SAYS or code > max(PYTEST_SAYS):
            what = PYTEST_SAYS.get(code, f"pytest ended with code {code}")
            raise BrokenHarnessError(f"{what}; the end of {log}:\n{tail(log, 2000)}")
        if code not in (0, 1):
            return RunResult(trouble=f"pytest ended with code {code} ({log})")
        try:
            return RunResult(read(junit))
        except ValueError as error:
            return RunResult(trouble=str(error))

    def _command(self, kernel: str, folder: Path, junit: Path) -> list[str]:
        return [
            *self.programs.pytest,
            *("-k", self.select, "--host", "emulated", "--host-kernel", kernel),
            # A known issue is what is looked for, and a skip would be no answer.
            *("--no-known-issues", "--require", "all"),
            *("--artifacts", str(folder / "tests"), "--junitxml", str(junit)),
            *self.options,
        ]


def build(programs: StepPrograms, kernel: str, folder: Path, patience: float) -> BuiltKernel:
    """Build the kernel that ``kernel`` names, within ``patience`` seconds.

    Raises :class:`UntestableError` if it does not build, or not in time, and
    :class:`BrokenHarnessError` if the trouble is not the kernel's.
    """
    said = _build(programs, [kernel], folder, patience)
    return BuiltKernel(said["how"], identity(said["kernel"]))


def compile_afresh(programs: StepPrograms, kernel: str, folder: Path, patience: float) -> None:
    """Compile a packaged kernel's KVM although it may be in the cache; raises as :func:`build`."""
    _build(programs, ["--compile", kernel], folder, patience)


def _build(programs: StepPrograms, words: Sequence[str], folder: Path, patience: float) -> Any:
    """What the program that builds says of a kernel that it could build."""
    answer, log = folder / "built.json", folder / "build.log"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = Deadline(patience, "the kernel to be built")
    code = _run([*programs.build, *words, str(answer)], log, deadline)
    if code is None:
        raise UntestableError(f"does not build in {patience:.0f} s ({log})")
    try:
        said: Any = json.loads(answer.read_text())
    except (OSError, ValueError) as error:
        raise BrokenHarnessError(
            f"the build ended with code {code} and no answer ({error}); the end of {log}:\n"
            f"{tail(log, 2000)}"
        ) from error
    if "does_not_build" in said:
        raise UntestableError(f"does not build: {said['does_not_build']}")
    if "trouble" in said:
        raise BrokenHarnessError(said["trouble"])
    return said


def _run(argv: Sequence[str], log: Path, deadline: Deadline) -> int | None:
    """The exit code of a child (negative for a signal), None if the deadline ended it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        # The user's options would change what is tested, and git's what a build takes for its tree.
        if name != "PYTEST_ADDOPTS" and not name.startswith("GIT_")
    }
    with spawn(argv, log=log, env=kept, grace=GRACE) as child:
        try:
            return child.wait(deadline.left())
        except subprocess.TimeoutExpired:
            return None
