"""``ci/selftest``: a KVM selftest of our own and hostfault, side by side.

For each kernel the selftest of kernels/selftest runs in an emulated host, and so do the dax
cases that are the same; the table at the end has both verdicts.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from hostfault.bisect.fixes import FIXES
from hostfault.bisect.fixes import KERNELS as FIXED
from hostfault.case.model import Scenario
from hostfault.case.settings import Settings
from hostfault.kernel.catalog import newest
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.errors import HostfaultError, UsageError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT
from hostfault.plumbing.short_directory import sweep_short_directories
from hostfault.run.lab import Lab
from hostfault.witness import build, compare, tap
from hostfault.witness.machine import run_selftest

STOCK = ("6.1", "6.12", "6.16", "6.17", "6.18", "7.2", "7.3.4")
KEEP = {"selftest-trees": 256 << 20, "selftests": 64 << 20}  # bytes that the cache keeps of each


def main(words: Sequence[str] | None = None) -> int:
    """Compare on every kernel that was asked for; returns the exit code."""
    asked = _parser().parse_args(words)
    logging.basicConfig(format="selftest: %(message)s")
    logging.getLogger("hostfault").setLevel(logging.INFO)
    cache = default_cache()
    sweep_short_directories()
    try:
        if asked.checkpatch:
            return _checkpatch(cache)
        folder = _folder(asked)
        program = build.selftest(cache)
        reports = [
            compare_on(name, program, tuple(asked.k), cache, folder / name.replace("/", "_"))
            for name in kernels(asked.host_kernel, everything=asked.all)
        ]
        for kind, most in KEEP.items():
            cache.prune(kind, most)
    finally:
        cache.close()
    print(f"\n{compare.table(reports)}\nlogs: {folder}")
    return compare.exit_code(reports)


def kernels(named: Sequence[str], *, everything: bool) -> tuple[str, ...]:
    """The kernels of a run: those named, and with --all the stock ones and each fix."""
    fixed = tuple(f"{kernel}+{fix}" for kernel, fix in product(FIXED, FIXES))
    found = (*named, *STOCK, *fixed) if everything else tuple(named)
    return tuple(dict.fromkeys(found or (newest(),)))


def compare_on(
    name: str, program: Path, prefixes: tuple[str, ...], cache: Cache, folder: Path
) -> compare.Report:
    """Both instruments on one kernel. What goes wrong is in the report; a wrong name is raised."""
    try:
        heard = run_selftest(name, program, prefixes, cache, folder / "selftest")
        results = tap.parse(heard.output)
    except UsageError:
        raise
    except HostfaultError as error:
        return compare.Report(name, (), (str(error),))
    scenarios = [each for each in map(compare.scenario_for, results) if each]
    rows = compare.rows_of(name, results, _ours(name, scenarios, folder))
    return compare.Report(name, rows, tuple(f"host: {line}" for line in heard.alarms))


def _ours(
    name: str, scenarios: Sequence[Scenario], folder: Path
) -> Mapping[Scenario, compare.Ours]:
    """Hostfault's verdicts, each or why there is none."""
    found: dict[Scenario, compare.Ours] = {}
    with Lab(Settings(host="emulated", host_kernel=name)) as lab:
        # Those that share a booted machine are neighbours.
        for number, scenario in enumerate(sorted(scenarios, key=lambda each: each.async_pf)):
            try:
                verdict = lab.run(name, scenario, folder / f"dax-{number:02}").verdict
            except HostfaultError as error:
                found[scenario] = compare.Ours(None, str(error).splitlines()[0])
            else:
                found[scenario] = compare.Ours(verdict.kind)
    return found


def _checkpatch(cache: Cache) -> int:
    said = build.checkpatch(cache)
    print(said or "checkpatch --strict has nothing to say")
    return compare.DIFFER if said else compare.AGREE


def _folder(asked: argparse.Namespace) -> Path:
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    return Path(asked.artifacts).absolute() / moment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ci/selftest", description=__doc__)
    add = parser.add_argument
    add(
        "--host-kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help=f"a kernel as for ci/dax; may be repeated (default {newest()})",
    )
    fixes = f"each of {', '.join(FIXES)} on {' and '.join(FIXED)}"
    add("--all", action="store_true", help=f"{', '.join(STOCK)}, and {fixes}")
    add("-k", action="append", default=[], metavar="PREFIX", help="only tests that begin like it")
    add("--checkpatch", action="store_true", help="only look at the style of the C code")
    add("--artifacts", default=str(PROJECT / ".hostfault" / "selftest"), metavar="DIR")
    return parser


if __name__ == "__main__":
    end_with(main, "selftest", trouble=compare.TROUBLE)
