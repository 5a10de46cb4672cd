"""Run one cell once, in a fork of a snapshot, and record what is counted."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hostfault.backing import virtiofs_dax
from hostfault.case.model import PAGE_SIZE, Scenario
from hostfault.guest import boot
from hostfault.guest import crowd as crowds
from hostfault.host.testbed import Host, Testbed
from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import HostfaultError
from hostfault.study import blame, frames
from hostfault.study.plan import Cell

FILE = "crowd"
RANGE = 2 << 20  # bytes that the guest maps at a time (FUSE DAX, Linux fs/fuse/dax.c)
LENGTH = 16 * RANGE  # bytes of the file: half of the window
ENOUGH = 2000  # asynchronous faults without an exit that count as a spin
PATIENCE = 120.0  # seconds from the word until a run is given up, as the harness's trouble
INTERVAL = 0.2  # seconds between two looks at the counts
PARAMETERS = "/sys/module/kvm/parameters"
STATISTICS = (
    "apf_error_recorded",
    "apf_error_hit",
    "apf_error_overwritten",
    "apf_error_dropped",
)


@dataclass(frozen=True)
class StudyRun:
    """What one run of a cell came to. All counts are of the time after the truncation."""

    cell: str  # its key
    repeat: int
    outcome: str  # "exit" | "queue-full" | "spin" | "ok" (all touches worked) | "signal" | "death"
    faults: int  # asynchronous page faults of the frames that are gone (kvm_try_async_get_page)
    other_faults: int  # ... of other frames
    by_frame: tuple[int, ...]  # the same by frame, in the touchers' order
    vcpus_by_frame: tuple[int, ...]  # how many vCPUs faulted on each frame
    ready: int  # "page ready" told to the guest (kvm_async_pf_ready)
    seconds: float  # from the word to the exit, or until it was cut off
    recorded: int  # failures that the table was given
    hit: int  # retries that found their frame in the table
    overwritten: int  # entries that were lost to others
    blame: str  # see blame.Blame; "" without an exit
    blamed: int | None  # number of the task on the vCPU at the exit
    named: bool | None  # whether the exit named a frame, and one that is gone
    named_is_blamed: bool | None  # whether that is the frame of the task on the vCPU
    gfns: tuple[int, ...]  # the frames that are gone
    release: str  # of the host's kernel
    took: float  # seconds of the whole run
    dropped: int = 0  # failures that a table which keeps its entries had no room for


def told_apart(result: StudyRun) -> StudyRun:
    """An exit that is none of the fix's doing, as "queue-full".

    Stock KVM itself handles a fault synchronously, and so stops, if as many asynchronous faults
    as it has room for (64 for each vCPU) are under way.
    """
    only_hits_exit = result.cell.startswith(("error-table/", "stock "))
    if result.outcome == "exit" and only_hits_exit and not result.hit:
        return dataclasses.replace(result, outcome="queue-full")
    return result


def scenario(cell: Cell) -> Scenario:
    """The configuration of machine that a cell needs."""
    fault = "zero" if cell.gone else "none"
    return Scenario("virtiofs-dax", fault, "load", cell.async_pf, cell.vcpus)


def run(host: Host, cell: Cell, repeat: int, folder: Path) -> StudyRun:
    """One run. Raises :class:`~hostfault.plumbing.errors.HostfaultError` for harness trouble."""
    folder.mkdir(parents=True, exist_ok=True)
    began = now()
    rng = random.Random(f"{cell.key} {repeat}")  # noqa: S311 (to be repeated)
    with host.testbed(scenario(cell), folder) as testbed:
        _set_parameters(testbed, cell)
        crowd, armed, gfns = _arm(testbed, cell, rng)
        testbed.agent.trace()
        before = _statistics(testbed)
        if cell.gone:
            testbed.agent.truncate(f"{virtiofs_dax.SHARED}/{FILE}", 0)
        started = now()
        crowd.go()
        outcome, ended = _watch(testbed, crowd, gfns, started)
        result = _result(testbed, cell, repeat, armed, gfns, outcome, ended - started, before)
    return told_apart(dataclasses.replace(result, took=round(now() - began, 1)))


def _set_parameters(testbed: Testbed, cell: Cell) -> None:
    """Write the module's parameters, and read back what holds."""
    wanted = {"apf_delay_us": str(cell.delay)} if cell.delay else {}
    if cell.behind:
        wanted["apf_behind"] = str(cell.behind)
    if cell.lookup:
        wanted |= {"apf_error_slots": str(cell.slots), "apf_error_lookup": cell.lookup}
    for name, value in wanted.items():
        path = f"{PARAMETERS}/{name}"
        testbed.agent.write(path, value)
        holds = testbed.agent.read(path, limit=64)[0].strip()
        if holds != value:
            raise HostfaultError(f"{path} holds {holds!r} after {value!r} was written")


def _arm(
    testbed: Testbed, cell: Cell, rng: random.Random
) -> tuple[crowds.Crowd, crowds.ArmedCrowd, list[int]]:
    """Bring all tasks to where they wait for the word; returns the touchers' frames."""
    path = f"{virtiofs_dax.SHARED}/{FILE}"
    testbed.agent.make_file(path, [0xA5], PAGE_SIZE)
    testbed.agent.truncate(path, LENGTH)
    crowd = crowds.start(
        testbed.guest,
        f"{virtiofs_dax.MOUNT_POINT}/{FILE}",
        LENGTH,
        cell.tasks,
        cell.policy,
        move=cell.move,
    )
    crowd.mapped(Deadline(60.0, "the crowd to map its file"))
    page_of = _frames(testbed)
    gfns = frames.choose(cell.frames, sorted(page_of), cell.bad, rng)
    armed = crowd.arm([page_of[gfn] for gfn in gfns], Deadline(60.0, "all tasks to be ready"))
    return crowd, armed, gfns


def _frames(testbed: Testbed) -> dict[int, int]:
    """The guest frame of every page of the file, from where the daemon mapped each range."""
    inode = testbed.agent.stat(f"{virtiofs_dax.SHARED}/{FILE}")["ino"]
    log = testbed.agent.read(virtiofs_dax.LOG, limit=1 << 20)[0]
    pages = {}
    for begin in range(0, LENGTH, RANGE):
        first = virtiofs_dax.find_frame(log, inode, begin, writable=False)
        if first is None:
            raise HostfaultError(f"the daemon has not mapped the file at {begin:#x}")
        pages.update(
            {first + page: begin // PAGE_SIZE + page for page in range(RANGE // PAGE_SIZE)}
        )
    return pages


def _watch(
    testbed: Testbed, crowd: crowds.Crowd, gfns: Iterable[int], started: float
) -> tuple[str, float]:
    """Wait for the end; returns what it was, and when."""
    bad = set(gfns)
    deadline = Deadline(PATIENCE, "an exit, an outcome or enough faults")
    while True:
        testbed.recorder.wait_changed(INTERVAL)
        stops = [e for e in testbed.recorder.events() if e.name == "STOP" and e.at >= started]
        if stops:
            state = str(testbed.recorder.execute("query-status")["status"])
            return ("exit" if state == "internal-error" else "death"), stops[0].at
        finished = crowd.finished()
        if finished:
            return ("signal" if finished[1] else "ok"), now()
        faults = sum(
            count
            for keys, count in testbed.agent.histogram("kvm_try_async_get_page")
            if keys["gfn"] in bad
        )
        if faults >= ENOUGH:
            return "spin", now()
        deadline.saw(f"{faults} asynchronous faults")
        deadline.check()


def _statistics(testbed: Testbed) -> Mapping[str, int]:
    """KVM's counters of the error table, summed over all vCPUs; 0 for a kernel without."""
    answer = testbed.recorder.execute(
        "query-stats", {"target": "vcpu", "providers": [{"provider": "kvm"}]}
    )
    total: dict[str, int] = defaultdict(int)
    for vcpu in answer:
        for stat in vcpu["stats"]:
            if stat["name"] in STATISTICS:
                total[stat["name"]] += int(stat["value"])
    return total


def _result(
    testbed: Testbed,
    cell: Cell,
    repeat: int,
    armed: crowds.ArmedCrowd,
    gfns: list[int],
    outcome: str,
    seconds: float,
    before: Mapping[str, int],
) -> StudyRun:
    """Ask for everything that is known at the end."""
    counts: dict[int, int] = defaultdict(int)
    vcpus = defaultdict(set)
    for keys, count in testbed.agent.histogram("kvm_try_async_get_page"):
        counts[keys["gfn"]] += count
        vcpus[keys["gfn"]].add(keys["common_pid"])
    ready = sum(count for _, count in testbed.agent.histogram("kvm_async_pf_ready"))
    after = _statistics(testbed)
    found = blame.judge(boot.qemu_log(testbed.agent), armed)
    pages = [task.page for task in armed.tasks if task.page is not None]
    blamed_page = armed.tasks[found.task].page if found.task is not None else None
    blamed_gfn = gfns[pages.index(blamed_page)] if blamed_page is not None else None
    return StudyRun(
        cell=cell.key,
        repeat=repeat,
        outcome=outcome,
        faults=sum(counts[gfn] for gfn in gfns),
        other_faults=sum(counts.values()) - sum(counts[gfn] for gfn in gfns),
        by_frame=tuple(counts[gfn] for gfn in gfns),
        vcpus_by_frame=tuple(len(vcpus[gfn]) for gfn in gfns),
        ready=ready,
        seconds=round(seconds, 3),
        **{name.removeprefix("apf_error_"): after[name] - before[name] for name in STATISTICS},
        blame=found.blame.value if outcome == "exit" else "",
        blamed=found.task if outcome == "exit" else None,
        named=None if found.named_gfn is None else found.named_gfn in gfns,
        named_is_blamed=None if found.named_gfn is None else found.named_gfn == blamed_gfn,
        gfns=tuple(gfns),
        release=str(testbed.agent.hello()["release"]),
        took=0.0,
    )
