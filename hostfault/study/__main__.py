"""Run the study, or what of it is missing, and write docs/error-table.md.

    python -m hostfault.study [--quick] [--kernel FIX=KERNEL]... [--write]

Results are kept line by line: a study that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from hostfault.case.settings import Settings
from hostfault.host.testbed import Host
from hostfault.kernel.catalog import newest
from hostfault.plumbing.errors import HostfaultError, UsageError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT
from hostfault.run.lab import Lab
from hostfault.study import plan, run, write
from hostfault.study.plan import Cell
from hostfault.study.run import StudyRun

FOLDER = PROJECT / ".hostfault" / "study"
DOCUMENT = PROJECT / "docs" / "error-table.md"
ATTEMPTS = 3  # of a run in which the harness fails


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parse(words)
    # A connection that is tried again is no news.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    cells = plan.quick() if options.quick else plan.full()
    results = FOLDER / ("quick.jsonl" if options.quick else "full.jsonl")
    if not options.write:
        _measure(_chosen(cells, options.only), results, dict(options.kernel))
    _tell(cells, load(results))
    if not options.quick and not options.only:
        for path in write.write(cells, load(results), DOCUMENT):
            _say(f"written: {path.relative_to(PROJECT)}")
    return 0


def missing(cells: Sequence[Cell], done: Mapping[str, set[int]]) -> Iterator[tuple[Cell, int]]:
    """What remains to be run, all cells at the pace that ends them together.

    So a drift of the machine meets all alike, and a study cut short has its share of everything.
    """
    every = [(cell, repeat) for cell in cells for repeat in range(cell.repeats)]
    every.sort(key=lambda run: run[1] / run[0].repeats)
    return (run for run in every if run[1] not in done.get(run[0].key, ()))


def load(path: Path) -> list[StudyRun]:
    """Results of earlier runs; a line that was cut short is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(_result(json.loads(line)))
        except ValueError:
            continue
    return found


def _result(data: Mapping[str, object]) -> StudyRun:
    lists = ("by_frame", "vcpus_by_frame", "gfns")
    values = {name: tuple(item) if name in lists else item for name, item in data.items()}  # type: ignore[arg-type]
    # Earlier runs did not tell apart whose exit it was.
    return run.told_apart(StudyRun(**values))  # type: ignore[arg-type]


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/error-table", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="a few cells, in minutes; no document")
    parser.add_argument("--write", action="store_true", help="measure nothing, write what is there")
    parser.add_argument(
        "--only",
        action="append",
        metavar="WORDS",
        help="measure only cells in whose name these words are (may be repeated); no document",
    )
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        type=_kernel,
        metavar="FIX=KERNEL",
        help=f"a kernel for one of {', '.join(plan.SERIES)} in place of the one built here",
    )
    return parser.parse_args(words)


def _kernel(text: str) -> tuple[str, str]:
    fix, _, kernel = text.partition("=")
    if fix not in plan.SERIES or not kernel:
        raise argparse.ArgumentTypeError(f"{text!r} is not {'|'.join(plan.SERIES)}=KERNEL")
    return fix, kernel


def _chosen(cells: Sequence[Cell], only: Sequence[str] | None) -> list[Cell]:
    """Raises :class:`UsageError`, with the cells there are, for words that none has."""
    found = [cell for cell in cells if any(words in cell.key for words in only or [""])]
    if not found:
        names = "\n  ".join(cell.key for cell in cells)
        raise UsageError(f"no cell is named with {' or '.join(only or [])!r}; there are\n  {names}")
    return found


def _measure(cells: Sequence[Cell], path: Path, kernels: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    known = load(path)
    done: dict[str, set[int]] = {}
    for result in known:
        done.setdefault(result.cell, set()).add(result.repeat)
    todo = list(missing(cells, done))
    with ExitStack() as stack:
        hosts: dict[str, Host] = {}
        for number, (cell, repeat) in enumerate(todo, 1):
            if cell.fix not in hosts:
                hosts[cell.fix] = _host(stack, cell.fix, kernels)
            result = _run(hosts[cell.fix], cell, repeat)
            _append(path, [result])
            _say(
                f"[{number}/{len(todo)}] {cell.key} #{repeat}: {result.outcome} after "
                f"{result.faults} faults {result.blame} ({result.took} s)"
            )


def _host(stack: ExitStack, fix: str, kernels: Mapping[str, str]) -> Host:
    kernel = kernels.get(fix) or f"{newest()}+{plan.SERIES[fix]}"
    settings = Settings(host="emulated", host_kernel=kernel)
    return stack.enter_context(Lab(settings)).host


def _run(host: Host, cell: Cell, repeat: int) -> StudyRun:
    """One run; where the harness fails it is tried again, and its folder is kept."""
    for attempt in range(1, ATTEMPTS + 1):
        folder = FOLDER / "runs" / cell.key.replace("/", "-").replace(" ", "_") / str(repeat)
        try:
            result = run.run(host, cell, repeat, folder)
        except UsageError:
            raise
        except HostfaultError as error:
            _say(f"{cell.key} #{repeat}: attempt {attempt}: {error}")
            if attempt == ATTEMPTS:
                raise
        else:
            shutil.rmtree(folder)
            return result
    raise AssertionError("unreachable")


def _append(path: Path, results: Sequence[StudyRun]) -> None:
    """Add results, each as one line; what a killed run left of a line is ended first."""
    with path.open("a+b") as stream:
        stream.seek(max(0, stream.tell() - 1))
        cut_short = stream.read(1) not in (b"", b"\n")
        lines = "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in results)
        stream.write(("\n" * cut_short + lines).encode())


def _tell(cells: Sequence[Cell], results: Sequence[StudyRun]) -> None:
    """Show what each cell came to."""
    for key, row in write.summaries(cells, results).items():
        ends = ", ".join(f"{outcome} {count}" for outcome, count in row.outcomes.items())
        _say(
            f"{key}: {ends}; culprit {row.culprits.yes}/{row.culprits.of}; "
            f"faults {row.faults.value:g} ({row.faults.low:g} to {row.faults.high:g})"
        )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    end_with(main, "error-table", trouble=3, stopped="stopped; what was measured is kept")
