"""``ci/ab BASE PATCHED``: what a KVM patch changes, and a paragraph for its cover letter.

Nothing in a case is left to chance: the two kernels get exactly the same ones, in the same order.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hostfault import __version__
from hostfault.case.model import RecoveryKind, VerdictKind
from hostfault.fault import FAULTS
from hostfault.matrix.compare import RECOVERIES, Pair, pairs, unknown
from hostfault.matrix.measure import Pytest, measure
from hostfault.matrix.result import ERROR, CellResult, Run
from hostfault.plugin import sets
from hostfault.plugin.cases import case_id
from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT

NOWHERE_WORSE, SOMEWHERE_WORSE, TROUBLE = 0, 1, 2
ATTEMPTS = 2  # at a cell of which there is no verdict
PATIENCE = 3600.0  # seconds for a kernel: built from nothing, and the cells
NPT_OFF = ("--kvm-option", "npt=0")


@dataclass(frozen=True)
class Comparison:
    """Two kernels in one configuration of the host."""

    npt: bool  # two-dimensional paging
    base: Run
    patched: Run
    wanted: tuple[str, ...]  # the cells, by id

    @property
    def pairs(self) -> list[Pair]:
        """The cells with two verdicts."""
        return pairs(self.base.results, self.patched.results)

    @property
    def unknown(self) -> list[str]:
        """The cells without."""
        return unknown(self.base.results, self.patched.results, self.wanted)

    @property
    def code(self) -> int:
        """The exit code that it comes to."""
        if any(pair.is_worse for pair in self.pairs):
            return SOMEWHERE_WORSE
        return TROUBLE if self.unknown else NOWHERE_WORSE


def main(words: Sequence[str] | None = None) -> int:
    """Measure, compare and print; returns the exit code."""
    asked = _parser().parse_args(words)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    folder = _folder(asked)
    codes = []
    for npt in {"on": (True,), "off": (False,), "both": (True, False)}[asked.npt]:
        compared = _compare(asked, npt, folder / ("npt-on" if npt else "npt-off"))
        print("\n".join(report(compared)), flush=True)
        codes.append(compared.code)
    if SOMEWHERE_WORSE in codes:
        return SOMEWHERE_WORSE
    return max(codes)


def report(compared: Comparison) -> Iterator[str]:
    """What a person reads."""
    base, patched = compared.base, compared.patched
    both = compared.pairs
    yield f"ab: {base.kernel} ({base.release}) against {patched.kernel} ({_built(patched)})"
    kinds = Counter("apf" if pair.base.scenario.async_pf else "noapf" for pair in both)
    yield (
        f"{len(both)} cells compared, {kinds['apf']} with asynchronous page faults, "
        f"{kinds['noapf']} without; npt={int(compared.npt)}"
    )
    yield from _section("differs", (_difference(pair) for pair in both if pair.differs))
    same = (f"{_name(pair.base)}: {pair.base.answer}" for pair in both if pair.fails_the_same)
    yield from _section("fails exactly the same with and without", same)
    yield from _section("no verdict", _reasons(compared))
    yield from _section("in short", conclusions(compared))
    yield from _section("to paste", [_paragraph(compared)])


def conclusions(compared: Comparison) -> Iterator[str]:
    """What a reviewer asks first: who is told now, and what does not recover any more."""
    both = compared.pairs
    spun = sum(pair.base.verdict == VerdictKind.SPIN for pair in both)
    spins = sum(pair.patched.verdict == VerdictKind.SPIN for pair in both)
    if spun and not spins:
        yield f"the spin is gone: {spun} cells spun, and none does with the patch"
    elif spun or spins:
        yield f"the spin is not gone: {spun} cells spun, and {spins} do with the patch"
    worse = [pair for pair in both if pair.verdict > 0]
    if worse:
        yield f"the verdict is worse in {len(worse)} cells: {', '.join(map(_cell, worse))}"
    yield from _recoveries(both)
    if not any(pair.is_worse for pair in both):
        yield "the patch is nowhere worse"


def _recoveries(both: Sequence[Pair]) -> Iterator[str]:
    """What recovered before and does not now, by backing and fault."""
    worse = [pair for pair in both if pair.recovery > 0]
    groups = Counter(
        (pair.base.scenario.backing, pair.base.scenario.fault, pair.patched.recovery)
        for pair in worse
    )
    for (backing, fault, recovery), count in groups.items():
        how = "is lost" if recovery == RecoveryKind.LOST else "needs QMP cont"
        cells = "1 cell" if count == 1 else f"{count} cells"
        yield f"recovery {how}: {backing}, {fault} ({_about(fault)}), {cells}"
    better = sum(pair.recovery < 0 for pair in both)
    if better:
        yield f"recovery is better in {better} cells"


def _paragraph(compared: Comparison) -> str:
    """For a cover letter."""
    both = compared.pairs
    failing = sum(pair.fails_the_same for pair in both)
    changed = sum(pair.differs for pair in both)
    day = time.strftime("%Y-%m-%d", time.gmtime(wall_clock()))
    told = "; ".join(conclusions(compared))
    return (
        f"Tested with hostfault {__version__} on {day}: {len(both)} cases of a page that the host "
        f"cannot back (or can, as a control), on {compared.base.release} and on the same kernel "
        f"with this series, npt={int(compared.npt)}, emulated AMD host. {changed} end differently, "
        f"{failing} fail exactly the same with and without. In short: {told}."
    )


def _difference(pair: Pair) -> str:
    words = [
        f"{what} {'WORSE' if change > 0 else 'better'}"
        for what, change in (("verdict", pair.verdict), ("recovery", pair.recovery))
        if change
    ]
    return f"{_name(pair.base)}: {pair.base.answer} -> {pair.patched.answer}   ({', '.join(words)})"


def _reasons(compared: Comparison) -> Iterator[str]:
    """Why a cell has no verdict, on which kernel."""
    for name in compared.unknown:
        for run in (compared.base, compared.patched):
            result = run.results.get(name)
            if result is None or result.verdict == ERROR:
                yield f"{name}, {run.kernel}: {result.summary if result else 'was not come to'}"


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield f"\n{title}:"
        yield from (f"  {line}" for line in found)


def _about(fault: str) -> str:
    """A fault in its own words."""
    return (inspect.getdoc(FAULTS[fault]) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")


def _name(result: CellResult) -> str:
    return case_id(result.scenario)


def _cell(pair: Pair) -> str:
    return _name(pair.base)


def _built(run: Run) -> str:
    return f"{run.release}, kvm.ko {run.kvm_build_id[:12]}" if run.kvm_build_id else run.release


# --- measuring ------------------------------------------------------------------------------------


def _compare(asked: argparse.Namespace, npt: bool, folder: Path) -> Comparison:
    cells = sets.load().scenarios(asked.set)
    extra = () if npt else NPT_OFF
    pytest = Pytest(options=(*extra, *asked.pytest))
    runs = []
    for which, kernel in (("base", asked.base), ("patched", asked.patched)):
        print(f"ab: {kernel}: {len(cells)} cells, log {folder / which}", flush=True)
        run = measure(kernel, asked.set, cells, folder / which, patience=PATIENCE, pytest=pytest)
        for _ in range(ATTEMPTS - 1):
            missing = [cell for cell in cells if _is_missing(run, case_id(cell))]
            if missing and npt:  # without npt it is the tracer that cannot
                again = folder / f"{which}-again"
                more = measure(kernel, asked.set, missing, again, patience=PATIENCE, pytest=pytest)
                run = run.merged(more)
        runs.append(run)
    return Comparison(npt, runs[0], runs[1], tuple(map(case_id, cells)))


def _is_missing(run: Run, name: str) -> bool:
    return name not in run.results or run.results[name].verdict == ERROR


def _folder(asked: argparse.Namespace) -> Path:
    moment = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(wall_clock()))
    return Path(asked.artifacts).absolute() / moment


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/ab",
        description=__doc__,
        epilog="Known failures count as what they are. What comes after -- goes to pytest. "
        f"Recoveries, best first: {', '.join(filter(None, RECOVERIES))}.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="a kernel, as for --host-kernel")
    add("patched", metavar="PATCHED", help="the one to be compared with it")
    add("--set", default="ab", metavar="NAME", help="of ci/matrix.toml (default %(default)s)")
    add(
        "--npt",
        choices=("on", "off", "both"),
        default="on",
        help="nested paging in the host's kernel (default %(default)s; off: --kvm-option npt=0)",
    )
    add("--artifacts", default=str(PROJECT / ".hostfault" / "ab"), metavar="DIR")
    add("pytest", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    end_with(main, "ci/ab", trouble=TROUBLE)
