"""Where the time goes: the seconds of each phase of a case, cold and warm, as medians.

Cold starts from an empty cache of its own (the network is used), warm from what that left.
With ``--step`` instead: what a step of a bisection takes, from source to verdict. The steps share
one cache that is empty at first, so the first one also pays for the build root and its base.
``whole:tree:PATH`` builds the whole kernel where KVM alone would do, to compare the two ways.
With ``--set`` instead: how many cases of a set an hour has, and on what it is spent.
With ``--boots`` instead: how many boots of each catalogued kernel fail as emulated host, and why.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hostfault.case.model import Scenario
from hostfault.case.settings import CPUS, Settings
from hostfault.kernel import catalog, resolve
from hostfault.kernel.build import read_tree
from hostfault.kernel.buildroot import build_root, suite_for
from hostfault.kernel.whole import whole_kernel
from hostfault.plugin import sets
from hostfault.plugin.cases import case_id
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.deadline import now, wall_clock
from hostfault.plumbing.errors import HostfaultError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.progress import heard_by
from hostfault.plumbing.project import PROJECT
from hostfault.run.boots import boots, boots_table
from hostfault.run.lab import Lab

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
WHOLE = "whole:tree:"
ORDER = (
    "set-up",
    "host boot",
    "restore",
    "reach",
    "guest boot",
    "guest ssh",
    "backend ready",
    "save",
    "arm",
    "touch to verdict",
    "tear-down",
    "all",
)


def once(settings: Settings, root: Path, folder: Path) -> dict[str, float]:
    """Seconds of each phase of one case."""
    started = now()
    with heard_by(_say), Lab(settings, Cache(root)) as lab:
        lab.facts()
        phases = {"set-up": now() - started}
        phases.update(lab.run("bench", SCENARIO, folder).phases)
    return {**phases, "all": now() - started}


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr)


def step(kernel: str, root: Path, folder: Path, cpu: str) -> dict[str, float]:
    """Seconds of each phase from a kernel's source to the verdict of one case with it."""
    started = now()
    cache = Cache(root)
    try:
        name = _build(kernel, cache)
    finally:
        cache.close()
    built = now() - started
    phases = once(Settings(host="emulated", cpu=cpu, host_kernel=name), root, folder)
    return {"build": built, **phases, "all": now() - started}


def _build(kernel: str, cache: Cache) -> str:
    """Build a kernel in the way that was asked for; returns what --host-kernel takes."""
    path = kernel.removeprefix(WHOLE)
    if path == kernel:
        resolve(kernel, cache)
        return kernel
    tree = read_tree(Path(path).absolute())
    compiler = build_root(cache, suite_for(tree.version))
    whole = whole_kernel(tree, compiler, cache)
    if whole.kvm != tree.kvm:  # it is kept by what is outside of KVM, and that was the same
        cache.discard(whole.base.image.parent)
        whole = whole_kernel(tree, compiler, cache)
    return f"{whole.base.image}:{whole.base.modules}"


def steps_table(steps: Mapping[str, Mapping[str, float]]) -> str:
    """One line a step: building, booting and all, in seconds."""
    lines = [f"{'step':40}{'build':>9}{'boot':>9}{'verdict':>9}{'all':>9}"]
    for name, phases in steps.items():
        boot = sum(phases.get(each, 0.0) for each in ("host boot", "guest boot"))
        verdict = phases.get("touch to verdict", 0.0)
        cells = (phases["build"], boot, verdict, phases["all"])
        lines.append(f"{name:40}" + "".join(f"{cell:9.1f}" for cell in cells))
    return "\n".join(lines)


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each phase over the runs that have it."""
    names = {name for run in runs for name in run}
    return {name: statistics.median(run[name] for run in runs if name in run) for name in names}


def table(cold: Mapping[str, float], warm: Mapping[str, float]) -> str:
    """Both as text; a phase that a run does not have is a dash."""

    def cell(values: Mapping[str, float], name: str) -> str:
        return f"{values[name]:8.2f}" if name in values else f"{'-':>8}"

    known = [name for name in ORDER if name in cold or name in warm]
    others = sorted((cold.keys() | warm.keys()) - set(ORDER))
    lines = [f"{'seconds (median)':20}{'cold':>8}{'warm':>8}"]
    lines += [f"{name:20}{cell(cold, name)}{cell(warm, name)}" for name in [*known, *others]]
    return "\n".join(lines)


def bench_steps(kernels: Sequence[str], cpu: str) -> int:
    """Measure the steps of a bisection and print them; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="hostfault-bench-") as place:
        root = Path(place) / "cache"
        steps = {
            kernel: step(kernel, root, Path(place) / f"run-{number}", cpu)
            for number, kernel in enumerate(kernels)
        }
    print(steps_table(steps))
    return 0


def bench_set(kernel: str | None, name: str, cpu: str) -> int:
    """Run the cells of a set one after another and print where the time goes; 1: some had none."""
    cells = sets.load().scenarios(name)
    with tempfile.TemporaryDirectory(prefix="hostfault-bench-") as place, heard_by(_say):
        settings = Settings(host="emulated", cpu=cpu, host_kernel=kernel)
        with Lab(settings) as lab:
            lab.facts()
            began = now()
            runs = [_cell(lab, cell, Path(place) / case_id(cell)) for cell in cells]
            took = now() - began
    print(set_table(name, runs, took))
    return int(any(not run for run in runs))


def _cell(lab: Lab, cell: Scenario, folder: Path) -> Mapping[str, float]:
    """Seconds of each phase of one case; empty if it came to no verdict. No evidence is kept."""
    try:
        return lab.run("bench", cell, folder).phases
    except HostfaultError as error:
        _say(f"{case_id(cell)}: {error}")
        return {}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def set_table(name: str, runs: Sequence[Mapping[str, float]], took: float) -> str:
    """A line for each phase: seconds in all, what part of ``took`` that is, and the median.

    What is not of a phase is told as the last.
    """
    good = [run for run in runs if run]
    names = {phase for run in good for phase in run}
    total = {phase: sum(run.get(phase, 0.0) for run in good) for phase in names}
    total["else"] = took - sum(total.values())
    middle = medians(good)
    lines = [
        f"set {name}: {len(runs)} cases in {took:.0f} s, {3600 * len(runs) / took:,.0f} an hour; "
        f"{len(runs) - len(good)} without a verdict",
        f"{'seconds':20}{'in all':>9}{'part':>8}{'median':>9}",
    ]
    known = [phase for phase in ORDER if phase in total]
    for phase in [*known, *sorted(total.keys() - set(ORDER))]:
        each = f"{middle[phase]:9.2f}" if phase in middle else f"{'-':>9}"
        lines.append(f"{phase:20}{total[phase]:9.1f}{total[phase] / took:8.0%}{each}")
    return "\n".join(lines)


def bench_boots(kernels: Sequence[str], count: int, cpu: str) -> int:
    """Boot each kernel so often and print the table; returns the exit code: 1 if a boot failed."""
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    folder = PROJECT / ".hostfault" / "boots" / moment
    found = boots(kernels or list(catalog.load()), count, folder, _say, cpu)
    print(boots_table(found))
    print(f"logs: {folder}")
    return int(any(boot.why for boot in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ci/bench", description=main.__doc__)
    parser.add_argument("--cold", type=int, default=1, metavar="N", help="cold runs (default 1)")
    parser.add_argument("--warm", type=int, default=5, metavar="N", help="warm runs (default 5)")
    parser.add_argument(
        "--step",
        action="append",
        default=[],
        metavar="KERNEL",
        help="time a step of a bisection with this kernel instead; may be repeated. "
        f"{WHOLE}PATH builds the whole kernel of a tree, whatever differs",
    )
    parser.add_argument("--host", default="auto", choices=("auto", "local", "emulated"))
    parser.add_argument("--cpu", choices=CPUS, default=CPUS[0], help="as for ci/dax")
    parser.add_argument(
        "--boots",
        type=int,
        default=0,
        metavar="N",
        help="boot every catalogued kernel N times as emulated host instead, with a guest in it; "
        "exit code 1 if a boot failed",
    )
    parser.add_argument(
        "--set",
        metavar="NAME",
        help="run a set of ci/matrix.toml on an emulated host instead; exit code 1 if a case came "
        "to no verdict",
    )
    parser.add_argument(
        "--host-kernel",
        action="append",
        default=[],
        metavar="KERNEL",
        help="with --boots or --set: this kernel alone; may be repeated with --boots",
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _parser().parse_args(words)
    if options.boots > 0:
        return bench_boots(options.host_kernel, options.boots, options.cpu)
    if options.set:
        return bench_set(next(iter(options.host_kernel), None), options.set, options.cpu)
    if options.step:
        return bench_steps(options.step, options.cpu)
    settings = Settings(host=options.host, cpu=options.cpu)
    cold: list[dict[str, float]] = []
    warm: list[dict[str, float]] = []
    for _ in range(max(1, options.cold)):
        with tempfile.TemporaryDirectory(prefix="hostfault-bench-") as place:
            root, folder = Path(place) / "cache", Path(place) / "run"
            cold.append(once(settings, root, folder / "cold"))
            warm += [once(settings, root, folder / f"warm-{n}") for n in range(options.warm)]
    print(f"medians of {len(cold)} cold and {len(warm)} warm runs of zero-load-apf")
    print(table(medians(cold), medians(warm)))
    return 0


if __name__ == "__main__":
    end_with(main, "ci/bench", trouble=3)
