"""``ci/matrix``: measure the cells of a set on several kernels, and write docs/matrix.md.

What was measured is kept; only what is missing is measured, also after a run that was ended.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hostfault.kernel.catalog import newest
from hostfault.matrix import page, picture, result
from hostfault.matrix.measure import Pytest, measure, read
from hostfault.matrix.result import ERROR, Run
from hostfault.plugin import sets
from hostfault.plugin.cases import case_id
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import UsageError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT

FIXES = ("error-table", "exit-request", "fail-at-once", "tell-user-space@mce")
DOCUMENT = PROJECT / "docs" / "matrix.md"
DATA = PROJECT / "docs" / "matrix" / "data.json"
PICTURE = PROJECT / "docs" / "matrix" / "matrix.svg"
FOLDER = PROJECT / ".hostfault" / "matrix"


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for trouble."""
    asked = _parser().parse_args(words)
    _refuse_to_mix(asked)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    matrix = sets.load()
    deadline = Deadline(asked.minutes * 60.0, "the cells to be measured")
    for kernel in asked.kernel or [newest(), *(f"{newest()}+{fix}" for fix in FIXES)]:
        if not deadline.passed():
            _fill_in(matrix, asked, kernel, deadline)
    runs = ordered(result.load(asked.data))
    for run in runs:
        _tell(run)
    if asked.write:
        write(runs, matrix)
    return 0


def _refuse_to_mix(asked: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for a CPU whose answers would get among those of AMD's."""
    other = any(word.startswith("--cpu") for word in asked.pytest)
    if other and asked.data.absolute() == DATA:
        raise UsageError("--cpu: the page is about AMD hosts; name a file of its own with --data")


def write(runs: Sequence[Run], matrix: sets.Matrix) -> None:
    """Write the page and its picture. Raises :class:`UsageError` if nothing was measured."""
    if not runs or runs[0].kernel != newest():
        raise UsageError(f"nothing was measured on {newest()}, with which the others are compared")
    DOCUMENT.write_text(page.page(runs, matrix))
    picture.draw(runs, PICTURE)
    _say(f"written: {DOCUMENT.relative_to(PROJECT)}, {PICTURE.relative_to(PROJECT)}")


def ordered(runs: Mapping[str, Run]) -> list[Run]:
    """Stock kernels first, the cells of each in the order of the largest set that has them."""
    cells = {case_id(cell): None for cell in sets.load().scenarios("full")}
    found = []
    for run in sorted(runs.values(), key=lambda run: ("+" in run.kernel, run.kernel)):
        names = [name for name in cells if name in run.results]
        names += [name for name in run.results if name not in cells]
        results = {name: run.results[name] for name in names}
        found.append(Run(run.kernel, run.release, run.kvm_build_id, run.dates, results))
    return found


def _fill_in(
    matrix: sets.Matrix, asked: argparse.Namespace, kernel: str, deadline: Deadline
) -> None:
    """Measure what is missing of a set on one kernel, and keep it."""
    known = result.load(asked.data)
    have = known[kernel].results if kernel in known else {}
    cells = [
        cell
        for cell in matrix.scenarios(asked.set)
        if asked.again or case_id(cell) not in have or have[case_id(cell)].verdict == ERROR
    ]
    if not cells:
        return
    _say(f"{kernel}: measuring {len(cells)} cells")
    options = Pytest(options=tuple(asked.pytest))
    folder = FOLDER / kernel
    try:
        measure(kernel, asked.set, cells, folder, patience=deadline.left(), pytest=options)
    finally:  # also what a run has left that a person ended
        run = read(kernel, cells, folder)
        if run.results:
            known[kernel] = known[kernel].merged(run) if kernel in known else run
            result.save({run.kernel: run for run in ordered(known)}, asked.data)
        _say(f"{kernel}: {len(run.results)} of {len(cells)} cells measured; logs: {folder}")


def _tell(run: Run) -> None:
    counts: dict[str, int] = {}
    for each in run.results.values():
        counts[each.answer] = counts.get(each.answer, 0) + 1
    answers = ", ".join(f"{answer} {count}" for answer, count in sorted(counts.items()))
    _say(f"{run.kernel}: {len(run.results)} cells: {answers}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ci/matrix", description=__doc__, epilog="What comes after -- goes to pytest."
    )
    add = parser.add_argument
    add("--set", default="page", metavar="NAME", help="of ci/matrix.toml (default %(default)s)")
    add(
        "--kernel",
        action="append",
        metavar="NAME",
        help="as for --host-kernel; with @POLICY, what the VMM does about a page that KVM reports "
        f"(default: {newest()}, and that with each of {', '.join(FIXES)})",
    )
    add(
        "--minutes",
        type=float,
        default=240.0,
        help="end after these; 0 measures nothing (default %(default)g)",
    )
    add("--again", action="store_true", help="measure what is there, too")
    add("--data", type=Path, default=DATA, help="where it is kept (default docs/matrix/data.json)")
    add("--write", action="store_true", help="write docs/matrix.md and its picture")
    add("pytest", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    end_with(main, "ci/matrix", trouble=2, stopped="stopped; what was measured is kept")
