"""The cells of the study: which kernel, which crowd, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace

SLOTS = (1, 2, 4, 8, 16, 64)
SIZES = (1, 4, 8, 16, 64, 128)
SLOW = 5000  # microseconds: much longer than a guest needs to let another task run
VERY_SLOW = 500_000  # microseconds: all touchers of a crowd have their turn meanwhile
KEY = 20  # repeats of what conclusions rest on
SOME = 10
FEW = 5
QUICK = 3

# The series of kernels/patches that a fix is measured with: all but the last carry slow-page-in.
SERIES = {
    "stock": "slow-page-in",
    "error-table": "error-table-slow",
    "exit-request": "exit-request-slow",
    "fail-at-once": "fail-at-once",
}


@dataclass(frozen=True)
class Cell:
    """One arrangement, run several times."""

    fix: str  # one of SERIES: what is done about a failure
    lookup: str = ""  # of an error table: "hash" | "array" | "keep", see the patch series
    slots: int = 0  # of an error table
    tasks: int = 128  # the thread's case: 128 tasks of which 32 ...
    bad: int = 32  # ... touch a page that is gone, each one of its own
    frames: str = "random"  # | "collide": all in one slot of the hash
    policy: str = "rr"  # | "fair": how the guest picks the next task, see images/probe/crowd.c
    vcpus: int = 1
    move: bool = False  # the tasks are sent from vCPU to vCPU all the time
    delay: int = 0  # microseconds that the host holds up every asynchronous fault, and
    behind: int = 0  # until so many later ones have begun (apf_delay_us, apf_behind)
    async_pf: bool = True  # False: guest booted with no-kvmapf
    gone: bool = True  # False: nothing is truncated (the control)
    repeats: int = KEY

    @property
    def key(self) -> str:
        """The cell in a line; two cells never share one."""
        words = [
            self.fix + (f"/{self.lookup}/{self.slots}" if self.lookup else ""),
            f"T{self.tasks}",
            f"E{self.bad}",
            self.frames,
            self.policy,
            f"{self.vcpus}cpu",
        ]
        words += [f"{self.delay}us"] * bool(self.delay) + [f"behind{self.behind}"] * bool(
            self.behind
        )
        words += ["move"] * self.move + ["no-kvmapf"] * (not self.async_pf)
        return " ".join(words + ["control"] * (not self.gone))


def full() -> list[Cell]:
    """Every cell of the study."""
    tables = (_sizes_of_table(), _keeping(), _slow(), _at_once(), _colliding(), _crowds())
    return [cell for part in (*tables, _request(), _vcpus(), _others()) for cell in part]


def quick() -> list[Cell]:
    """A few minutes' worth: the corners."""
    corners = [
        _table("array", 1),
        _table("array", 64),
        replace(_table("array", 1), behind=0),
        Cell("exit-request", delay=SLOW),
        Cell("stock", gone=False),
    ]
    return [replace(cell, repeats=QUICK) for cell in corners]


def _table(lookup: str, slots: int) -> Cell:
    """The thread's case with the least favourable order: every failure just misses its task."""
    return Cell("error-table", lookup, slots, behind=1)


def _slow_table(lookup: str, slots: int, policy: str) -> Cell:
    return Cell("error-table", lookup, slots, policy=policy, delay=SLOW, repeats=SOME)


def _sizes_of_table() -> list[Cell]:
    """128 tasks, 32 of them bad: does a table of that size end the loop, and how soon?"""
    return [_table(lookup, slots) for lookup in ("array", "hash") for slots in SLOTS]


def _keeping() -> list[Cell]:
    """An array whose entries stay until they are hit: the newer failure is dropped."""
    return [_table("keep", slots) for slots in (1, 4, 8, 16)]


def _slow() -> list[Cell]:
    """The same with a device that takes its time, and nobody that arranges the order."""
    smallest = [_slow_table(kind, 1, p) for kind in ("array", "keep") for p in ("rr", "fair")]
    in_turn = [_slow_table("array", slots, "rr") for slots in (8, 64)]
    kinds = [("array", 4), ("array", 16), ("array", 64), ("hash", 8), ("hash", 64)]
    fair = [_slow_table(*kind, "fair") for kind in kinds]
    return [replace(cell, repeats=KEY) for cell in smallest] + in_turn + fair


def _at_once() -> list[Cell]:
    """The smallest table when the host knows at once that the page is gone."""
    return [replace(_table("array", 1), behind=0, policy=policy) for policy in ("rr", "fair")]


def _request() -> list[Cell]:
    """The request: who is on the vCPU when it stops?"""
    cells = [Cell("exit-request", policy=p, delay=d) for p in ("rr", "fair") for d in (SLOW, 0)]
    sizes = ((1, 1), (128, 1), (128, 128))
    others = [Cell("exit-request", tasks=t, bad=e, delay=SLOW, repeats=FEW) for t, e in sizes]
    return cells + others


def _colliding() -> list[Cell]:
    """The worst frames for a hash."""
    return [
        replace(_table("hash", 64), frames="collide"),
        replace(_slow_table("hash", 64, "fair"), frames="collide"),
        replace(_table("array", 64), frames="collide", repeats=FEW),
    ]


def _crowds() -> list[Cell]:
    """Other numbers of bad tasks among 128, and crowds in which all tasks are bad."""
    tables = [_table(lookup, 8) for lookup in ("array", "hash")]
    among = [replace(cell, bad=bad, repeats=FEW) for cell in tables for bad in SIZES if bad != 32]
    alone = [replace(tables[0], tasks=size, bad=size, repeats=FEW) for size in (4, 16, 64)]
    kept = [replace(_table("keep", 1), bad=bad, repeats=FEW) for bad in (64, 128)]
    return among + alone + kept


def _vcpus() -> list[Cell]:
    """Two and four vCPUs, tasks left alone and tasks on the move."""
    ways = [(2, False), (2, True), (4, False), (4, True)]
    kinds = [
        _slow_table("array", 8, "fair"),
        _slow_table("array", 64, "fair"),
        Cell("exit-request", policy="fair", delay=SLOW),
    ]
    every = [(cell, *way) for cell in kinds for way in ways]
    # What stays behind where a task has gone away blocks a table that keeps its entries.
    every += [(_slow_table("keep", 1, "fair"), vcpus, True) for vcpus in (2, 4)]
    return [replace(cell, vcpus=vcpus, move=move, repeats=FEW) for cell, vcpus, move in every]


def _others() -> list[Cell]:
    """What needs no table, what does nothing, and the control."""
    answers = [Cell("fail-at-once", policy=policy) for policy in ("rr", "fair")]
    answers += [Cell("stock", delay=SLOW, policy=policy) for policy in ("rr", "fair")]
    others = [
        Cell("stock", bad=64, delay=VERY_SLOW),
        Cell("stock", bad=128, delay=VERY_SLOW),
        Cell("stock", delay=SLOW, gone=False),
        replace(_slow_table("array", 1, "rr"), async_pf=False),
    ]
    return answers + [replace(cell, repeats=FEW) for cell in others]
