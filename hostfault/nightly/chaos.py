"""``ci/chaos N``: kills parts of a night N times, at random moments, and looks at what that does.

Killed are ci/nightly itself, its pytest, the outer QEMU, or all of them at once (as a power cut
does it), and inside the emulated host the agent and the guest's QEMU. Each night is started again
until it ends. Then there must be no verdict other than the one of an undisturbed night, every
result that had been reported, and no process and no directory left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hostfault.nightly import inside
from hostfault.nightly.night import Runner
from hostfault.nightly.results import Key, Result, Status
from hostfault.nightly.runs import PytestPrograms
from hostfault.nightly.store import NightStore
from hostfault.plumbing.deadline import Deadline, now, poll, wall_clock
from hostfault.plumbing.errors import DeadlineError, SetupError
from hostfault.plumbing.process import spawn
from hostfault.plumbing.program import end_with
from hostfault.plumbing.project import PROJECT

ALL_RIGHT, WRONG, USAGE = 0, 1, 2
NIGHT = 900.0  # seconds in which an undisturbed night must end
GONE = 60.0  # seconds after which nothing may be left of a killed night
SOCKETS = Path("/tmp")  # noqa: S108 (where the suite makes directories for its sockets)
TICK = 0.05  # seconds between two looks at the processes
OUTSIDE = ("nightly", "pytest", "qemu", "everything")
INSIDE = tuple(inside.VICTIMS)  # the emulated host
KINDS = OUTSIDE + INSIDE
CASES = 2  # of a smoke night
AMID = 1.5  # seconds of a case in which what is inside is killed


@dataclass(frozen=True)
class Process:
    """A process, so that another one with the same number is another one."""

    pid: int
    started: int  # in clock ticks since the boot

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        found = _stat(self.pid)
        return found is not None and found[1] == self.started and found[2] != "Z"

    def kill(self) -> None:
        """End it at once."""
        if self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


@dataclass
class Family:
    """All that descended from a process while somebody looked, by kind."""

    root: int
    seen: dict[Process, str] = field(default_factory=dict)

    def look(self) -> None:
        """Remember who is there now."""
        children: dict[int, list[tuple[int, int]]] = {}
        for entry in Path("/proc").iterdir():
            found = _stat(int(entry.name)) if entry.name.isdigit() else None
            if found is not None:
                children.setdefault(found[0], []).append((int(entry.name), found[1]))
        waiting = [self.root]
        while waiting:
            for pid, started in children.get(waiting.pop(), ()):
                waiting.append(pid)
                process = Process(pid, started)
                # What was forked a moment ago is still called like its parent.
                if self.seen.get(process, "other") == "other":
                    self.seen[process] = _kind(pid)

    def alive(self, kind: str = "everything") -> list[Process]:
        """Those that still run."""
        return [
            each
            for each, of_kind in self.seen.items()
            if kind in ("everything", of_kind) and each.is_alive()
        ]


def _over(child: subprocess.Popen[bytes], family: Family) -> bool | None:
    family.look()
    return True if child.poll() is not None else None


def _stat(pid: int) -> tuple[int, int, str] | None:
    """Parent, start and state of a process (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return int(fields[1]), int(fields[19]), fields[0]


def _kind(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "other"
    # Not the one that is only about to become it (setpriv, or the image's dynamic loader is).
    if any("hostfault.nightly" in word or "nightly_suite" in word for word in words[:6]):
        return "nightly"
    if "pytest" in words[:6]:
        return "pytest"
    if any("qemu-system" in word for word in words[:8]):
        return "qemu"
    return "other"


@dataclass(frozen=True)
class Kill:
    """One kill, as it is kept."""

    kind: str
    at: float  # seconds after the start of the night, or of the case for what is inside
    reported: int  # results that the night had then


@dataclass
class Figures:
    """What came of all of them."""

    kills: list[Kill] = field(default_factory=list)
    nights: int = 0
    results: int = 0
    trouble: dict[str, int] = field(default_factory=dict)  # by reason
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        kinds = Counter(kill.kind for kill in self.kills)
        return [
            f"{len(self.kills)} kills: {', '.join(f'{kinds[k]} {k}' for k in KINDS if kinds[k])}",
            f"{self.nights} nights, {self.results} results",
            f"runs without a verdict: {self.trouble or 'none'}",
            f"wrong verdicts: {self.wrong or 'none'}",
            f"results lost: {self.lost or 'none'}",
            f"left behind: {self.left or 'nothing'}",
        ]

    @property
    def is_right(self) -> bool:
        """Whether all was as it must be."""
        return not (self.wrong or self.lost or self.left)


class Chaos:
    """Nights below one directory, and what was done to them. Goes on where it was."""

    def __init__(
        self, folder: Path, nightly: Sequence[str], seed: int, kinds: Sequence[str] = OUTSIDE
    ) -> None:
        """``nightly`` is the command of a night without ``--results``; ``kinds`` are killed."""
        self._folder = folder
        self._nightly = nightly
        self._kinds = kinds
        kills_inside = set(kinds) & set(INSIDE)
        self._plugin = ("--", "-p", inside.__name__) if kills_inside else ()
        self._state = folder / "chaos.json"
        self.figures = Figures()
        self._seconds = 0.0
        self._expected: dict[Key, str] = {}
        self._load()
        # Another part of the sequence for those that go on.
        self._dice = random.Random(f"{seed} {len(self.figures.kills)}")  # noqa: S311

    def run(self, kills: int, deadline: Deadline) -> None:
        """Kill until there were so many, or until the deadline."""
        if not self._expected:
            self._measure()
        while len(self.figures.kills) < kills and not deadline.passed():
            self._night(kills, deadline)
            self._save()

    def _measure(self) -> None:
        """Undisturbed nights: what the verdicts are, and how long the kills have."""
        store = NightStore(self._folder / "undisturbed")
        for _ in range(2):  # the first may boot machines, which those to come need not
            begun = now()
            with self._start(store) as child:
                child.wait(NIGHT)
            self._seconds = now() - begun
        found = store.results(store.names()[-1]) if store.names() else []
        self._expected = {each.key: each.word for each in found if not each.outcome.is_trouble}
        if not self._expected:
            raise SetupError(f"an undisturbed night has no result; see {self._folder}/log")
        self._save()
        print(f"chaos: an undisturbed night: {len(self._expected)} cells, {self._seconds:.0f} s")

    def _night(self, kills: int, deadline: Deadline) -> None:
        """One night, begun as often as it takes; the kills end when there were enough."""
        store = NightStore(self._folder / "nights")
        before = set(store.names())
        family: list[Family] = []
        reported: dict[tuple[Key, int], str] = {}
        while True:
            wanted = len(self.figures.kills) < kills and not deadline.passed()
            kind = self._dice.choice(self._kinds) if wanted else ""
            if kind in INSIDE:
                family.append(self._disturb_inside(store, kind))
            else:
                at = self._dice.uniform(0.0, self._seconds)
                family.append(self._disturb(store, kind, at))
            new = [name for name in store.names() if name not in before]
            found = self._results(store, new[-1]) if new else []
            self._look_for_losses(reported, found)
            reported = {(each.key, each.attempt): each.word for each in found}
            if new and store.night(new[-1]).finished:
                break
            self._save()
        self.figures.nights += 1
        self.figures.results += len(found)
        self._look_for_wrongs(found)
        self._look_for_rests(family)

    def _disturb_inside(self, store: NightStore, kind: str) -> Family:
        """Start the night with the order to kill one process of the emulated host; let it end."""
        at = round(self._dice.uniform(0.0, AMID), 2)
        done = self._folder / "killed-inside"
        done.unlink(missing_ok=True)
        order = inside.Order(kind, self._dice.randint(1, CASES), at, str(done))
        family = self._disturb(store, "", 0.0, order.to_environment())
        if done.exists():
            self.figures.kills.append(Kill(kind, at, self._reported(store)))
        return family

    def _disturb(
        self, store: NightStore, kind: str, at: float, more: Mapping[str, str] | None = None
    ) -> Family:
        """Start the night, and after ``at`` seconds kill; without a kind let it end."""
        with self._start(store, more) as child:
            family = Family(child.pid)
            family.seen[Process(child.pid, (_stat(child.pid) or (0, 0, ""))[1])] = "nightly"
            end = Deadline(NIGHT, "a night to end")
            moment = Deadline(at, "the moment to kill")

            def ended() -> bool | None:
                family.look()
                if kind and moment.passed() and child.poll() is None:
                    return False if family.alive(kind) else None
                return True if child.poll() is not None else None

            if poll(end, ended, TICK) is False:
                victims = family.alive(kind)
                for victim in victims:
                    victim.kill()
                after = round(moment.elapsed(), 2)
                self.figures.kills.append(Kill(kind, after, self._reported(store)))
                poll(end, lambda: _over(child, family), TICK)
        # With a power cut nobody tidies up; else what is killed may leave that to others.
        gone = Deadline(GONE, "a killed night's processes to go")
        with suppress(DeadlineError):
            poll(gone, lambda: True if not family.alive() else None, TICK)
        return family

    def _reported(self, store: NightStore) -> int:
        """How many results the newest night has."""
        names = store.names()
        return len(self._results(store, names[-1])) if names else 0

    def _results(self, store: NightStore, name: str) -> list[Result]:
        night = store.night(name)
        if night.finished:
            return store.results(name)
        return Runner(store, night, PytestPrograms(), (), lambda _: False, lambda _: None).found()

    def _look_for_losses(
        self, reported: Mapping[tuple[Key, int], str], found: Iterable[Result]
    ) -> None:
        there = {(each.key, each.attempt): each.word for each in found}
        for (key, attempt), word in reported.items():
            if there.get((key, attempt)) != word:
                said = there.get((key, attempt), "nothing")
                self.figures.lost.append(f"{key.kernel} {key.case}: {word}, then {said}")

    def _look_for_wrongs(self, found: Iterable[Result]) -> None:
        for each in found:
            if each.outcome.is_trouble:
                count = self.figures.trouble.get(each.reason, 0)
                self.figures.trouble[each.reason] = count + 1
            elif each.outcome is not Status.SKIPPED and each.word != self._expected.get(each.key):
                self.figures.wrong.append(f"{each.kernel} {each.case}: {each.word}: {each.summary}")

    def _look_for_rests(self, families: Sequence[Family]) -> None:
        for family in families:
            for process in family.alive():
                self.figures.left.append(f"process {process.pid} ({family.seen[process]})")
                process.kill()
        ours = {str(process.pid) for family in families for process in family.seen}
        for path in sorted(SOCKETS.glob("hostfault-*-*")):  # the second word is its maker's number
            if path.name.split("-")[1] in ours:
                self.figures.left.append(str(path))

    def _start(
        self, store: NightStore, more: Mapping[str, str] | None = None
    ) -> AbstractContextManager[subprocess.Popen[bytes]]:
        argv = [*self._nightly, "--results", str(store.root), *self._plugin]
        env = {**os.environ, **(more or {})}
        return spawn(argv, log=self._folder / "log", env=env, grace=60.0)

    def _load(self) -> None:
        with suppress(OSError, ValueError):
            data = json.loads(self._state.read_text())
            self._seconds = data["seconds"]
            self._expected = {Key(kernel, case): word for kernel, case, word in data["expected"]}
            of = data["figures"]
            self.figures = Figures(**of | {"kills": [Kill(**kill) for kill in of["kills"]]})

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        expected = [[key.kernel, key.case, word] for key, word in self._expected.items()]
        data = {"seconds": self._seconds, "expected": expected, "figures": asdict(self.figures)}
        self._state.write_text(json.dumps(data, indent=1) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Do it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ci/chaos", description=__doc__)
    add = parser.add_argument
    add("kills", type=int, metavar="N")
    add("--seed", type=int, default=1, help="of the moments and victims (%(default)s)")
    add("--kernel", default="7.3.4", help="what the nights are about (%(default)s)")
    add("--results", default=str(PROJECT / ".hostfault" / "chaos"), metavar="DIR")
    add("--minutes", type=float, default=240.0, help="stop then; the same command goes on")
    asked = parser.parse_args(words)
    nightly = [sys.executable, "-P", "-m", "hostfault.nightly", "--set", "smoke"]
    nightly += ["--kernels", asked.kernel, "--minutes", "30"]
    begun = wall_clock()
    chaos = Chaos(Path(asked.results).absolute(), nightly, asked.seed, KINDS)
    chaos.run(asked.kills, Deadline(asked.minutes * 60, "the kills"))
    print("\n".join(chaos.figures.lines()))
    print(f"{wall_clock() - begun:.0f} s")
    return ALL_RIGHT if chaos.figures.is_right else WRONG


if __name__ == "__main__":
    end_with(main, "chaos", trouble=USAGE, stopped="stopped; the same command goes on from here")
