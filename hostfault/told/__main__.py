"""Measure cells of docs/told.md, or what of them is missing, and write that page.

    python -m hostfault.told [--only KEY]... [--table NAME]... [--again] [--write]

Results are kept line by line: a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hostfault.case.settings import Settings
from hostfault.plumbing.errors import HostfaultError
from hostfault.plumbing.program import end_with
from hostfault.plumbing.progress import heard_by
from hostfault.plumbing.project import PROJECT
from hostfault.run.lab import Lab
from hostfault.told import write
from hostfault.told.plan import CELLS, Measurement
from hostfault.told.run import ToldRun, run

FOLDER = PROJECT / ".hostfault" / "told"
RESULTS = FOLDER / "results.jsonl"
DOCUMENT = PROJECT / "docs" / "told.md"


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    options = _parse(words)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it tries again by itself
    cells = [cell for cell in CELLS if _is_asked_for(cell, options)]
    try:
        with heard_by(_say):
            if not options.write:
                _measure(cells, anew=options.again or bool(options.only))
        for line in write.lines([each for each in write.load(RESULTS) if _is_of(each, cells)]):
            print(line)
        if not options.only and not options.table:
            for path in write.write(write.load(RESULTS), DOCUMENT):
                _say(f"written: {path.relative_to(PROJECT)}")
    except HostfaultError as error:
        sys.stderr.write(f"told: {error}\n")
        return 3
    except KeyboardInterrupt:
        sys.stderr.write(f"\ntold: stopped; {RESULTS} keeps what was measured\n")
        return 130
    return 0


def _measure(cells: Sequence[Measurement], *, anew: bool) -> None:
    """Run cells, those with the same settings in one lab; each result is kept at once."""
    done = set() if anew else {each.cell for each in write.load(RESULTS)}
    for settings, group in _by_settings([cell for cell in cells if cell.key not in done]):
        with ExitStack() as stack:
            lab = stack.enter_context(Lab(settings))
            for cell in group:
                _say(f"{cell.key}: {cell.kernel}, policy {cell.policy}")
                _keep(run(lab, cell, _fresh(FOLDER / "runs" / cell.key)))


def _by_settings(cells: Sequence[Measurement]) -> Iterator[tuple[Settings, list[Measurement]]]:
    """Groups that share a lab, in the order of the plan."""
    groups: dict[Settings, list[Measurement]] = {}
    for cell in cells:
        groups.setdefault(cell.settings, []).append(cell)
    return iter(groups.items())


def _keep(result: ToldRun) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(write.as_json(result)) + "\n")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _is_asked_for(cell: Measurement, options: argparse.Namespace) -> bool:
    if options.only:
        return cell.key in options.only
    return not options.table or cell.table in options.table


def _is_of(result: ToldRun, cells: Sequence[Measurement]) -> bool:
    return result.cell in {cell.key for cell in cells}


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/told", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    keys, tables = [cell.key for cell in CELLS], list(dict.fromkeys(c.table for c in CELLS))
    add("--only", action="append", choices=keys, metavar="KEY", help=f"of {', '.join(keys)}")
    add("--table", action="append", choices=tables, help="the cells of one table")
    add("--again", action="store_true", help="measure anew what was measured")
    add("--write", action="store_true", help="measure nothing, write what was measured")
    return parser.parse_args(words)


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    end_with(main, "told", trouble=3)
