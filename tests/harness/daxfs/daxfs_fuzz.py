"""The fuzzers of the back-end: ``ci/fuzz``.

Three of them, each with a daemon forked for it: vhost-user messages, what a driver puts into rings,
FUSE requests against a model. Hypothesis draws the cases, and makes one that finds something small.
The cases depend on the seed alone; what a race in one of them comes to does not.

Exit codes: 0 nothing found, 1 something, 2 trouble of the fuzzers' own.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Callable

import daxfs_fuzz_messages as messages
import daxfs_fuzz_rings as rings
from daxfs_fuzz_requests import Requests
from daxfs_served import KINDS, FoundError, found
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from hostfault.plumbing.deadline import Deadline, now

STEPS = 40  # rules that one guest lives through
EXAMPLES = {"messages": 100, "rings": 80, "requests": 60}  # of a batch; some seconds


def options(examples: int, *, shrink: bool = True) -> settings:
    """How hypothesis goes about it."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,  # the daemon's answers are timed one by one, by its own clock
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def fuzz_messages(number: int, how: settings) -> int:
    """Returns how many messages were sent. Raises FoundError, as the others do."""
    done = 0

    @seed(number)
    @how
    @given(messages.cases)
    def attempt(case: tuple) -> None:
        nonlocal done
        done += messages.do(case)

    attempt()
    return done


def fuzz_rings(number: int, how: settings) -> int:
    """Returns how many rings were filled."""
    done = 0

    @seed(number)
    @how
    @given(rings.cases)
    def attempt(case: list[rings.Filled]) -> None:
        nonlocal done
        done += sessions.do(case)

    with rings.Sessions() as sessions:
        attempt()
    return done


def fuzz_requests(number: int, how: settings) -> int:
    """Returns how many requests were made."""
    before = Requests.done

    @seed(number)
    class Seeded(Requests):
        pass

    run_state_machine_as_test(Seeded, settings=how)
    return Requests.done - before


FUZZERS: dict[str, Callable[[int, settings], int]] = {
    "messages": fuzz_messages,
    "rings": fuzz_rings,
    "requests": fuzz_requests,
}


def report(done: Counter[str], counts: Counter[str], seconds: float) -> str:
    """The last lines of a run."""
    parts = ", ".join(f"{done[name]} {name}" for name in FUZZERS)
    kinds = ", ".join(f"{counts[kind.kind]} {kind.kind}" for kind in KINDS)
    return f"cases: {sum(done.values())} ({parts}) in {seconds:.0f} s\nfound: {kinds}"


def main() -> int:
    """Fuzz until the time is over; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ci/fuzz", description="Fuzzes the virtiofs back-end.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default %(default)s)")
    parser.add_argument("--only", choices=list(FUZZERS), help="one of the three")
    asked = parser.parse_args()
    names = [asked.only] if asked.only else list(FUZZERS)
    done: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    began, deadline = now(), Deadline(60 * asked.minutes, "the fuzzers")
    batch = 0
    while batch == 0 or not deadline.passed():
        for name in names:
            number = asked.seed * 1_000_003 + batch
            try:
                done[name] += FUZZERS[name](number, options(EXAMPLES[name]))
            except Exception as error:
                kind = found[0] if found else None
                print(f"{name}, batch {batch} of seed {asked.seed}:", file=sys.stderr)
                traceback.print_exception(error)
                if kind is None or not isinstance(kind, FoundError):
                    print(f"ci/fuzz: trouble of its own: {error!r}", file=sys.stderr)
                    return 2
                counts[kind.kind] += 1
                found.clear()
        batch += 1
    print(report(done, counts, now() - began))
    return 1 if counts else 0


if __name__ == "__main__":
    sys.exit(main())
