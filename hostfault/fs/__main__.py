"""Run suites of others for file systems on the real mount, in a real guest: ``ci/fs``.

Their sources are named on the command line; what is fetched is the Debian root in which fstests
is built and runs. Every part (a directory of pjdfstest, a run of fsx) has a fork of the saved
machine of its own; a part whose guest is lost is tried again twice from where it was lost (of
fstests from the next test), and is trouble then. With ``--outcomes FILE --resume`` a run goes on
where another one ended, also one that ``--minutes N`` ended.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import inf
from pathlib import Path

from hostfault.backing import QEMU_CHILD
from hostfault.backing.virtiofs_dax import LOG, MOUNT_POINT, TAG
from hostfault.case.model import Scenario
from hostfault.case.settings import Settings
from hostfault.fs import debian, fstests, suites
from hostfault.fs.send import send_program, send_tree
from hostfault.fs.suites import PartOutcome
from hostfault.fs.without_kvm import LabWithoutKvm
from hostfault.host.testbed import Testbed
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    UsageError,
)
from hostfault.plumbing.program import end_with
from hostfault.plumbing.progress import heard_by
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "none", "load", async_pf=True)
FILE_PATIENCE = 2400.0  # seconds for one test of pjdfstest; some make 2,000 checks
RUN_PATIENCE = 1500.0  # seconds for one run of another suite
ATTEMPTS = 3
QEMU_ENDING = 10.0  # seconds that QEMU may take to end, once the guest's connections are gone
KINDS, WITHOUT_KVM = ("auto", "local", "emulated"), "tcg"
HOST = "as for ci/dax; tcg: TCG runs the guest here, without any KVM, many times faster than an "
HOST += "emulated host does, and the back-end stays who you are"


@dataclass(frozen=True)
class Part:
    """What is run in one fork."""

    name: str
    tests: tuple[str, ...]  # its names: one outcome each
    run: Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]  # some of them


class TimeIsUpError(HostfaultError):
    """The minutes that a run was given are over, between two tests."""


def pjdfstest_parts(source: Path, only: Sequence[str] = ()) -> Iterator[Part]:
    """One part for each of its directories."""
    with tempfile.TemporaryDirectory(prefix="hostfault-fs-") as place:
        archive = suites.pjdfstest_archive(source, Path(place))
    files = suites.pjdfstest_files(source)
    wanted = [name for name in files if _wanted(f"pjdfstest {name}", only)]
    for folder, names in groupby(wanted, lambda name: name.partition("/")[0]):
        yield Part(f"pjdfstest {folder}", tuple(names), _pjdfstest(archive))


def _pjdfstest(archive: bytes) -> Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]:
    def run(testbed: Testbed, names: Sequence[str]) -> Iterator[PartOutcome]:
        agent, guest = testbed.agent, testbed.guest
        patience = Deadline(60.0, "pjdfstest to be sent")
        send_tree(agent, guest, archive, "/tmp", patience)  # noqa: S108 (in the guest)
        send_program(agent, guest, suites.OPENSSL, "/bin/openssl", patience)
        guest.check(suites.NOBODY, patience)
        for name in names:
            deadline = Deadline(FILE_PATIENCE, f"pjdfstest's {name}")
            answer = guest.run(suites.pjdfstest_command(name, MOUNT_POINT), deadline)
            yield suites.read_tap(name, answer.text)

    return run


def fsx_parts(source: Path, only: Sequence[str], operations: int, seed: int) -> Iterator[Part]:
    """One part for each set of options."""
    with tempfile.TemporaryDirectory(prefix="hostfault-fs-") as place:
        program = suites.fsx_program(source, Path(place))
    for name, options in suites.FSX_RUNS.items():
        if _wanted(f"fsx {name}", only):
            command = suites.fsx_command(options, MOUNT_POINT, operations, seed)
            yield Part(f"fsx {name}", (name,), _fsx(program, command))


def _fsx(program: bytes, command: str) -> Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]:
    def run(testbed: Testbed, names: Sequence[str]) -> Iterator[PartOutcome]:
        guest, patience = testbed.guest, Deadline(60.0, "fsx to be sent")
        send_program(testbed.agent, guest, program, "/tmp/fsx", patience)  # noqa: S108
        for name in names:
            answer = guest.run(command, Deadline(RUN_PATIENCE, f"fsx {name}"))
            yield suites.read_fsx(name, answer.code, answer.text)

    return run


def debian_parts(root: Path, only: Sequence[str]) -> Iterator[Part]:
    """One part for fio and one for stress-ng, which say themselves what they can do."""
    runs = tuple(name for name in debian.FIO_RUNS if _wanted(f"fio {name}", only))
    if runs:
        yield Part("fio", runs, _fio(debian.archive(root, debian.FIO)))
    stressors = tuple(name for name in debian.stressors(root) if _wanted(f"stress-ng {name}", only))
    if stressors:
        yield Part("stress-ng", stressors, _stress(debian.archive(root, debian.STRESS)))


def _fio(archive: bytes) -> Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]:
    def run(testbed: Testbed, names: Sequence[str]) -> Iterator[PartOutcome]:
        guest, patience = testbed.guest, Deadline(120.0, "fio to be sent")
        send_tree(testbed.agent, guest, archive, debian.PLACE, patience)
        for name in names:
            command = debian.fio_command(debian.FIO_RUNS[name], MOUNT_POINT)
            answer = guest.run(command, Deadline(RUN_PATIENCE, f"fio {name}"))
            yield debian.read_fio(name, answer.code, answer.text)

    return run


def _stress(archive: bytes) -> Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]:
    def run(testbed: Testbed, names: Sequence[str]) -> Iterator[PartOutcome]:
        guest, patience = testbed.guest, Deadline(120.0, "stress-ng to be sent")
        send_tree(testbed.agent, guest, archive, debian.PLACE, patience)
        for name in names:
            command = debian.stress_command(name, MOUNT_POINT)
            answer = guest.run(command, Deadline(RUN_PATIENCE, f"stress-ng {name}"))
            yield debian.read_stress(name, answer.code, answer.text)

    return run


def fstests_parts(source: Path, only: Sequence[str]) -> Iterator[Part]:
    """One part for the generic quick group, built when the first guest is there."""
    wanted = tuple(name for name in fstests.tests(source) if _wanted(f"fstests {name}", only))
    if wanted:
        yield Part("fstests", wanted, _fstests(source))


def _fstests(source: Path) -> Callable[[Testbed, Sequence[str]], Iterator[PartOutcome]]:
    def run(testbed: Testbed, names: Sequence[str]) -> Iterator[PartOutcome]:
        for name in names:
            if fstests.needs_second(source, name):
                yield PartOutcome("fstests", name, "skipped", fstests.NEEDS_SECOND)
        rest = [name for name in names if not fstests.needs_second(source, name)]
        if rest:
            _send_fstests(testbed, source)
        for name in rest:
            patience = Deadline(fstests.TEST_PATIENCE + 60.0, f"fstests' {name}")
            try:
                answer = testbed.guest.run(fstests.check_command(name), patience)
            except (ConnectionLostError, DeadlineError) as error:
                # It is the test's doing as often as not: the next guest goes on with the next one.
                yield PartOutcome("fstests", name, "trouble", f"{error}; {_last_words(testbed)}")
                raise
            yield fstests.read_check(name, answer.text)

    return run


def _last_words(testbed: Testbed) -> str:
    """How the guest's QEMU ended, or what its kernel said last, if either tells."""
    try:
        deadline = Deadline(QEMU_ENDING, "QEMU to end")
        while not deadline.passed():  # a process hangs up before it is gone
            code = testbed.agent.ended(QEMU_CHILD)
            if code is not None:
                return f"QEMU ended with {code}"
            testbed.recorder.wait_changed(0.2)
        return testbed.guest.run("dmesg | tail -n 12", Deadline(20.0, "dmesg")).text
    except HostfaultError as error:
        return f"neither tells: {error}"


def _send_fstests(testbed: Testbed, source: Path) -> None:
    with closing(default_cache()) as cache:
        archive = fstests.archive(source, cache)
    agent, guest, patience = testbed.agent, testbed.guest, Deadline(600.0, "fstests to be sent")
    guest.check(fstests.room_command(), patience)
    send_tree(agent, guest, archive, fstests.PLACE, patience)
    guest.check(fstests.ready_command(TAG, MOUNT_POINT), patience)


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(text in name for text in only)


def run_part(
    lab: Lab, part: Part, folder: Path, keep: Callable[[PartOutcome], None], budget: Deadline
) -> None:
    """Run it, and hand each outcome to ``keep``; if the guest is lost, what is left again.

    Raises :class:`TimeIsUpError` before a test for which there is no time any more, and any other
    :class:`HostfaultError`.
    """
    left = list(part.tests)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            where = folder / f"{part.name.replace(' ', '-')}-{attempt}"
            with lab.testbed(SCENARIO, where) as testbed:
                _run_tests(testbed, part, left, keep, budget)
                return
        except (ConnectionLostError, DeadlineError) as error:
            if attempt == ATTEMPTS:
                raise
            print(f"{part.name}: the guest was lost, once more ({error})", file=sys.stderr)


def _run_tests(
    testbed: Testbed,
    part: Part,
    left: list[str],
    keep: Callable[[PartOutcome], None],
    budget: Deadline,
) -> None:
    """Run what is ``left`` of a part, which is taken from there as it is done."""
    try:
        for outcome in part.run(testbed, tuple(left)):
            keep(outcome)
            left.remove(outcome.name)
            if left and budget.passed():
                raise TimeIsUpError(f"{part.name}: {len(left)} tests are left")
    finally:
        _check_log("".join(testbed.agent.tails([LOG], 1 << 20)))


def _check_log(text: str) -> None:
    """Raise if the back-end noted a bug of its own."""
    for line in text.splitlines():
        if '"event": "bug"' in line:
            raise HostfaultError(f"the back-end has a bug: {line}")


@contextmanager
def _kept(path: Path | None) -> Iterator[Callable[[PartOutcome], None]]:
    """Where outcomes are noted as they come, one line of JSON each."""
    if path is None:
        yield lambda _: None
        return
    with path.open("a") as stream:

        def keep(outcome: PartOutcome) -> None:
            stream.write(json.dumps(asdict(outcome)) + "\n")
            stream.flush()

        yield keep


def read_outcomes(path: Path) -> list[PartOutcome]:
    """What a file of ``--outcomes`` holds; nothing if there is none. Raises :class:`UsageError`."""
    if not path.exists():
        return []
    try:
        return [PartOutcome(**json.loads(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise UsageError(f"--outcomes {path}: not a file of outcomes ({error})") from error


def left_of(parts: Sequence[Part], done: Sequence[PartOutcome]) -> Iterator[Part]:
    """What is still to be run of some parts, once there are outcomes."""
    known = {f"{outcome.suite} {outcome.name}" for outcome in done}
    for part in parts:
        suite = part.name.partition(" ")[0]
        tests = tuple(name for name in part.tests if f"{suite} {name}" not in known)
        if tests:
            yield replace(part, tests=tests)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/fs", description=__doc__)
    parser.add_argument("--pjdfstest", type=Path, metavar="DIR", help="its sources")
    parser.add_argument(
        "--fstests",
        type=Path,
        metavar="DIR",
        help="sources of fstests, for fsx and, with --host tcg, for its generic quick group",
    )
    parser.add_argument(
        "--debian",
        type=Path,
        metavar="ROOT",
        help="a root of Debian's with fio and stress-ng in it; / for this machine's",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="TEXT",
        help="what has this in its name, as 'pjdfstest chmod/00.t'; may be repeated",
    )
    parser.add_argument("--operations", type=int, default=2000, help="of fsx (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of fsx (%(default)s)")
    parser.add_argument("--host", default="auto", choices=(*KINDS, WITHOUT_KVM), help=HOST)
    parser.add_argument("--host-kernel", metavar="KERNEL", help="as for ci/dax")
    parser.add_argument(
        "--virtiofsd", default="", metavar="PROGRAM [OPTIONS]", help="as for ci/dax"
    )
    parser.add_argument("--artifacts", type=Path, metavar="DIR", help="where logs go")
    parser.add_argument("--outcomes", type=Path, metavar="FILE", help="gets a line for each")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what --outcomes FILE already holds"
    )
    parser.add_argument(
        "--minutes", type=float, default=inf, help="begin no test after so many (exit code 2)"
    )
    options = parser.parse_args(arguments)
    if not (options.pjdfstest or options.fstests or options.debian):
        parser.error("name a suite: --pjdfstest DIR, --fstests DIR, --debian ROOT")
    if options.resume and not options.outcomes:
        parser.error("--resume: name the file to go on from: --outcomes FILE")
    return options


def _parts(options: argparse.Namespace) -> Iterator[Part]:
    if options.pjdfstest:
        yield from pjdfstest_parts(options.pjdfstest, options.only)
    if options.debian:
        yield from debian_parts(options.debian, options.only)
    if options.fstests:
        yield from fsx_parts(options.fstests, options.only, options.operations, options.seed)
        if options.host == WITHOUT_KVM:  # other guests have too little memory for its root
            yield from fstests_parts(options.fstests, options.only)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them and tell; 0 if nothing failed, 1 if something did, 2 for trouble."""
    options = _options(arguments)
    budget = Deadline(60 * options.minutes, "all suites")
    settings = Settings(
        host="auto" if options.host == WITHOUT_KVM else options.host,
        host_kernel=options.host_kernel,
        virtiofsd=tuple(shlex.split(options.virtiofsd)),
    )
    outcomes: list[PartOutcome] = []
    try:
        outcomes += read_outcomes(options.outcomes) if options.resume else []
        parts = list(left_of(list(_parts(options)), outcomes))
        with (
            tempfile.TemporaryDirectory(prefix="hostfault-fs-") as place,
            heard_by(lambda text: print(f"  {text}", file=sys.stderr)),
            (LabWithoutKvm if options.host == WITHOUT_KVM else Lab)(settings) as lab,
            _kept(options.outcomes) as note,
        ):

            def keep(outcome: PartOutcome) -> None:
                outcomes.append(outcome)
                note(outcome)
                print(f"{outcome.suite} {outcome.name}: {outcome.verdict}", flush=True)

            for part in parts:
                if budget.passed():
                    raise TimeIsUpError(f"{part.name} and what follows it are left")
                run_part(lab, part, options.artifacts or Path(place), keep, budget)
    except HostfaultError as error:
        print(f"ci/fs: {error}", file=sys.stderr)
        return 2
    print(suites.table(outcomes))
    return exit_code(outcomes)


def exit_code(outcomes: Sequence[PartOutcome]) -> int:
    """Trouble outweighs a failure: what has not been tried to its end may fail, too."""
    verdicts = {outcome.verdict for outcome in outcomes}
    return 2 if "trouble" in verdicts else 1 if "failed" in verdicts else 0


if __name__ == "__main__":
    end_with(main, "ci/fs", trouble=2)
