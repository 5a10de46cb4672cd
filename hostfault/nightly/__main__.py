"""``ci/nightly``: one command a night on a runner."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from hostfault.nightly import finish, lock, news, plan, runs, sets
from hostfault.nightly.baseline import as_toml, choose, from_night
from hostfault.nightly.kernels import check_out
from hostfault.nightly.night import Runner, resumed
from hostfault.nightly.results import LOCAL, Result
from hostfault.nightly.runs import PytestPrograms
from hostfault.nightly.shards import merge, shard_options
from hostfault.nightly.soak import Soak
from hostfault.nightly.store import Night, NightStore, keep_seconds, replace_text
from hostfault.nightly.submit import submit
from hostfault.plumbing.deadline import Deadline, wall_clock
from hostfault.plumbing.errors import HostfaultError, UsageError
from hostfault.plumbing.program import torn_down_by_signals
from hostfault.plumbing.project import PROJECT
from hostfault.plumbing.short_directory import sweep_short_directories

USAGE = 2
STOPPED = 130
GOES_ON = 24 * 3600.0  # seconds within which a night that was stopped goes on where it was
KVM = Path("/dev/kvm")
CODES = (
    "Exit codes: 0 nothing new; 1 something is worse than the baseline; 3 only the harness had "
    "trouble, or another run is on; 2 wrong options. What comes after -- goes to pytest."
)


def main(words: Sequence[str] | None = None, programs: PytestPrograms | None = None) -> int:
    """Do what is asked; returns the exit code."""
    asked = _parser().parse_args(words)
    programs = programs or PytestPrograms()
    store = NightStore(Path(asked.results).absolute())
    try:
        with lock.held(store.root / "lock", "ci/nightly " + " ".join(words or sys.argv[1:])):
            if asked.accept_as_baseline is not None:
                return _accept(asked, store)
            if asked.merge:
                return _merge(asked, store)
            if asked.soak:
                return _soak(asked, store, programs)
            return _night(asked, store, programs)
    except UsageError as error:
        print(f"nightly: {error}", file=sys.stderr)
        return USAGE
    except HostfaultError as error:
        print(f"nightly: {error}", file=sys.stderr)
        return news.TROUBLE


def _night(asked: argparse.Namespace, store: NightStore, programs: PytestPrograms) -> int:
    keep = keep_seconds(asked.keep)  # a wrong one is told before the night, not after it
    finish.tidy(store)
    night = _to_go_on(asked, store)
    if night is None:
        night = _new(asked, store, programs)
    else:
        print(f"nightly: {night.name} goes on where it was, {night.spent / 60:.1f} minutes used")
    store.save(night)
    baseline = choose(asked.baseline, store, night.name)
    before = store.before(night.name)
    measured = [each for other in before[:10] for each in store.results(other.name)]

    def retry(result: Result) -> bool:
        kind = news.judge(result, baseline.expected(result))
        return kind in (news.Kind.WORSE, news.Kind.TROUBLE)

    runner = Runner(store, night, programs, measured, retry, _say)
    found = runner.run(before[0].left if before else ())
    # A pytest that was killed could not; the next one would, but there may be none tonight.
    sweep_short_directories()
    night, code = finish.finish(store, runner.night, found, baseline)
    for name in store.prune(keep, wall_clock()):
        _say(f"{name} is older than {asked.keep} and removed")
    _show(store, night, asked.submit)
    return code


def _soak(asked: argparse.Namespace, store: NightStore, programs: PytestPrograms) -> int:
    """One night after another, until one as long as the last no longer fits."""
    end = Deadline(asked.minutes * 60, "the soak")
    of_all, took = Soak((), ()), 0.0
    while end.left() > took:
        begun = end.left()
        one = argparse.Namespace(**{**vars(asked), "minutes": begun / 60, "fresh": True})
        code = _night(one, store, programs)
        of_all = of_all.and_(code, store.results(store.names()[-1]))
        took = begun - end.left()
    print("\n".join(of_all.lines()))
    return of_all.code


def _to_go_on(asked: argparse.Namespace, store: NightStore) -> Night | None:
    """The last night, if it was stopped and is the one that is asked for."""
    unfinished = [night for night in store.nights() if not night.finished]
    last = unfinished[-1] if unfinished else None
    wanted = _asked_of(asked)
    if (
        last is None
        or asked.fresh
        or (last.set, last.minutes, last.shard, list(last.options)) != wanted[:4]
        or (asked.kernels is not None and list(last.kernels) != list(wanted[4]))
        or wall_clock() - last.began > GOES_ON
    ):
        for night in unfinished:
            _say(f"{night.name} was stopped and is not gone on with; what it had is kept")
            found = Runner(store, night, PytestPrograms(), (), lambda _: False, _say).found()
            finish.finish(store, night, found, choose("last-green", store, night.name))
        return None
    return resumed(last, store)


def _asked_of(
    asked: argparse.Namespace,
) -> tuple[str, float, str, list[str], dict[str, str]]:
    options = list(asked.pytest)
    number = plan.workers(asked.workers, len(os.sched_getaffinity(0)), _memory())
    if number > 1:
        # Not loadgroup: with it, pytest-xdist 3.8 waits for ever once a worker was killed.
        options += ["-n", str(number), "--dist", "load"]
    kernels = plan.kernels_of(asked.kernels) if asked.kernels is not None else _default_kernels()
    return asked.set, asked.minutes, asked.shard, options, kernels


def _memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _default_kernels() -> dict[str, str]:
    """The machine's own where it may have one, and the newest of the catalogue."""
    from hostfault.kernel.catalog import newest

    return ({LOCAL: LOCAL} if KVM.exists() else {}) | {newest(): newest()}


def _new(asked: argparse.Namespace, store: NightStore, programs: PytestPrograms) -> Night:
    set_name, minutes, shard, options, kernels = _asked_of(asked)
    wanted, notes = check_out(kernels, store.root / "trees")
    cases = runs.collect(programs, sets.load()[set_name], shard_options(shard))
    moment = wall_clock()
    return Night(
        name=store.new_name(moment),
        set=set_name,
        kernels=wanted,
        minutes=minutes,
        began=moment,
        cases=dict.fromkeys(wanted, cases),
        notes=notes,
        runner=platform.node(),
        options=options,
        shard=shard,
        # Where nobody asked for it, a machine without KVM of use is no trouble.
        optional=(LOCAL,) if asked.kernels is None else (),
    )


def _accept(asked: argparse.Namespace, store: NightStore) -> int:
    night = next((each for each in reversed(store.nights()) if each.finished), None)
    if night is None:
        raise UsageError(f"--accept-as-baseline: no night has ended in {store.root}")
    path = Path(asked.accept_as_baseline or store.root / "baseline.toml").absolute()
    entries = from_night(night, store.results(night.name), asked.reason, asked.link)
    replace_text(path, as_toml(entries))
    store.save(finish.accepted(night))
    print(f"nightly: {night.name} is what the next nights are compared to; {path} says the same")
    return 0


def _merge(asked: argparse.Namespace, store: NightStore) -> int:
    night, found = merge(store, [Path(each) for each in asked.merge], wall_clock())
    baseline = choose(asked.baseline, store, night.name)
    night, code = finish.finish(store, night, found, baseline)
    _show(store, night, asked.submit)
    return code


def _show(store: NightStore, night: Night, url: str | None) -> None:
    folder = store.folder(night.name)
    summary = (folder / "summary.md").read_text()
    print(summary)
    print(f"nightly: {folder}/report.html", flush=True)
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if step:
        with Path(step).open("a") as page:
            page.write(summary + "\n")
    if url:
        _say(submit(url, (folder / "kcidb.json").read_text(), os.environ))


def _say(text: str) -> None:
    print(f"nightly: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ci/nightly", description=__doc__, epilog=CODES)
    add = parser.add_argument
    add("--set", choices=sorted(sets.load()), default="nightly", help="which tests (%(default)s)")
    add(
        "--kernels",
        metavar="NAME,...",
        help="as --host-kernel takes them, 'local' for this machine's own, LABEL=KERNEL, and "
        "tree:PATH@REF (default: local where there is a /dev/kvm, and the newest known)",
    )
    add("--minutes", type=float, default=120.0, metavar="N", help="the budget (%(default)g)")
    add("--results", default=str(PROJECT / ".hostfault" / "nightly"), metavar="DIR")
    add("--keep", default="30d", metavar="30d", help="how long nights are kept (%(default)s)")
    add(
        "--baseline",
        default="last-green",
        metavar="last-green|NIGHT|FILE",
        help="what is compared to (%(default)s: the last nights in which nothing was worse)",
    )
    add(
        "--accept-as-baseline",
        nargs="?",
        const="",
        metavar="FILE",
        help="run nothing: the last night is as it should be; writes DIR/baseline.toml, or FILE",
    )
    add("--reason", default="", help="for --accept-as-baseline: why")
    add("--link", default="", help="for --accept-as-baseline: where it is discussed")
    add("--fresh", action="store_true", help="begin a night though the last one was stopped")
    add("--soak", action="store_true", help="night after night until the minutes are over")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="tests at the same time, as far as cores and memory allow",
    )
    add("--shard", default="", metavar="I/N", help="the I-th of N parts of the set")
    add("--merge", nargs="+", metavar="DIR", help="run nothing: make one night of shards'")
    add("--submit", metavar="URL", help="send kcidb.json there; token: $KCIDB_TOKEN")
    add("pytest", nargs="*", metavar="-- OPTION", help=argparse.SUPPRESS)
    return parser


def _stop(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop)
    logging.basicConfig(format="nightly: %(message)s", level=logging.WARNING)
    try:
        with torn_down_by_signals():
            code = main()
        sys.exit(code)
    except KeyboardInterrupt:
        print("\nnightly: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(STOPPED)
