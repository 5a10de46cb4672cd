"""How each situation of the plan is brought about, and what disturbs it. All side effects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from hostfault.backing import BACK_END_CHILD
from hostfault.case.model import PAGE_SIZE, Terms
from hostfault.check.liar import Liar
from hostfault.check.plan import Case
from hostfault.fault import FAULTS
from hostfault.guest import boot
from hostfault.guest.probe import Probe, start
from hostfault.host.emulated import PYTHON
from hostfault.host.testbed import Testbed
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.run.arm import Armed

PARAMETERS = "/sys/module/kvm/parameters"
DEFECTS = {  # numbers of the parameter "mutant" (kernels/patches/mutants)
    "warns": 1,
    "stuck-vcpu": 2,
    "other-error": 3,
    "retried": 4,
    "loses-the-wakeup": 5,
    "zero-page": 6,
}
SECOND_ACCESS = "vector"  # at an instruction of its own, and it leaves the page as it is
PAUSE = 0.5  # seconds that a VM is paused for
_PATIENCE = 120.0  # seconds for what a guest does before its case: it may have a tenth of a core
_IN_VAIN = 2.0  # seconds to wait for a guest that will not answer

# Programs that the host runs; each says a word when it is about its work, and ends with the host.
_TAKE_AGAIN = """
import os, sys, time
from hostfault.agent.filesystems import punch_hole
fd = os.open(sys.argv[1], os.O_RDWR)
punch_hole(fd, int(sys.argv[2]), 4096)
print("begun", flush=True)
while True:  # as fast as leaves the guest time to get at the page in between
    time.sleep(0.002)
    punch_hole(fd, int(sys.argv[2]), 4096)
"""
_BURN = """
import os
os.nice(-5)
print("begun", flush=True)
while True:
    pass
"""
_STOP_THE_BACK_END = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if b"hostfault.daxfs" in path.read_bytes():
        os.kill(int(path.parent.name), signal.SIGSTOP)
        print("begun", flush=True)
"""


@dataclass
class Stage:
    """A case that is armed, with what has been done to it."""

    case: Case
    testbed: Testbed
    armed: Armed
    done: set[str] = field(default_factory=set)  # what is done once, while the access is watched
    second: Probe | None = None  # of the disturbance second-task

    def once(self, what: str) -> bool:
        """Whether this has not been done yet; now it counts as done."""
        if what in self.done:
            return False
        self.done.add(what)
        return True

    @property
    def is_touching(self) -> bool:
        """Whether the probe has said that it touches."""
        return any('"touching"' in step for step in self.armed.task.report().steps)


def _nothing(*_: object) -> None:
    return


def _fault(stage: Stage) -> None:
    """What the case's fault does of itself."""
    FAULTS[stage.case.scenario.fault].inject(stage.armed.scene)


@dataclass(frozen=True)
class Doing:
    """What is done for a situation or as a disturbance, and when."""

    inject: Callable[[Stage], None] = _nothing  # before the word
    meanwhile: Callable[[Stage, float], None] = _nothing  # at each look, seconds after the word
    enter: Callable[[Testbed], Testbed] = lambda testbed: testbed  # before anything is armed


def terms_of(case: Case, own: Terms) -> Terms:
    """By which rules it is judged: the fault's own, and what the situation changes of them."""
    changes = dict(case.situation.terms)
    if "expected" in changes and own.writes:  # what the access stores will be there
        changes["expected"] = own.expected
    return dataclasses.replace(own, **changes)  # type: ignore[arg-type]  # named in the plan


# --- on the host ------------------------------------------------------------------------


def _on_host(stage: Stage, name: str, code: str, *words: str) -> None:
    """Start a program of ours there, and wait until it is about its work."""
    agent = stage.testbed.agent
    agent.open(name, [*PYTHON.argv, "-c", code, *words], PYTHON.env)
    deadline, said = Deadline(20.0, f"the host's {name} to begin"), b""
    while b"begun" not in said:
        heard = agent.hear(name, 0.5)
        said += heard or b""
        deadline.saw(said.decode(errors="replace"))
        if heard is None:
            raise HostfaultError(f"the host's {name} ended: {deadline.last_seen}")
        deadline.check()


def _parameter(stage: Stage, name: str, value: int) -> None:
    stage.testbed.agent.write(f"{PARAMETERS}/{name}", str(value))


def _page_words(stage: Stage) -> tuple[str, str]:
    page = stage.armed.scene.page
    return page.path, str(page.offset)


def _give_back(stage: Stage) -> None:
    """The page is there again; it reads as zeroes."""
    FAULTS[stage.case.scenario.fault].undo(stage.armed.scene)


def _regrow(stage: Stage) -> None:
    _fault(stage)
    _give_back(stage)


def _slow(stage: Stage) -> None:
    _parameter(stage, "apf_delay_us", round(stage.case.numbers["delay"] * 1e6))
    _fault(stage)


def _back_after(stage: Stage, seconds: float) -> None:
    if seconds >= stage.case.numbers["back-after"] and stage.once("give back"):
        _give_back(stage)


def _mutate(stage: Stage) -> None:
    _fault(stage)
    if stage.case.situation.name == "retried":
        _give_back(stage)
        _parameter(stage, "mutant_retries", round(stage.case.numbers["retries"]))
    _parameter(stage, "mutant_gfn", stage.armed.gfn)
    _parameter(stage, "mutant", DEFECTS[stage.case.situation.name])


def _take_again(stage: Stage) -> None:
    _on_host(stage, "taker", _TAKE_AGAIN, *_page_words(stage))


def _panic_host(stage: Stage) -> None:
    _fault(stage)
    stage.testbed.agent.write("/proc/sysrq-trigger", "c")


def _end_qemu(stage: Stage) -> None:
    _fault(stage)
    stage.testbed.agent.kill(boot.NAME, round(stage.case.numbers.get("signal", 9)))


def _end_back_end(stage: Stage) -> None:
    _fault(stage)
    stage.testbed.agent.kill(BACK_END_CHILD, 11)


def _let_qemu_touch(stage: Stage) -> None:
    """QEMU reads the page for its monitor, as a device of its would for the guest."""
    _fault(stage)
    stage.testbed.recorder.monitor(f"xp /1xb {stage.armed.gfn * PAGE_SIZE:#x}")


# --- in the guest -----------------------------------------------------------------------


def _in_guest(stage: Stage, command: str) -> None:
    stage.testbed.guest.check(command, Deadline(_PATIENCE, f"the guest to run {command}"))


def _in_vain(stage: Stage, command: str) -> None:
    """Have the guest do what it cannot answer any more."""
    with suppress(ConnectionLostError):
        stage.testbed.guest.run(command, Deadline(_IN_VAIN, "a guest that is gone"))


def _panic_guest(stage: Stage) -> None:
    _fault(stage)
    _in_vain(stage, "echo c >/proc/sysrq-trigger")


def _halt_guest(stage: Stage) -> None:
    """The guest's kernel stops all tasks and halts with interrupts off, machine_halt()."""
    _in_vain(stage, "halt -f")
    _fault(stage)


def _deadlock_guest(stage: Stage) -> None:
    """A task that waits for the share's server for ever holds the lock of the file's inode.

    It has opened the file before, and names it by its descriptor: neither asks the server.
    """
    _fault(stage)
    held = f"exec 3<>{stage.armed.scene.view.path}; touch /tmp/open"
    wait = "until [ -e /tmp/stopped ]; do :; done"
    _in_guest(stage, _behind(f"{held}; {wait}; chmod 600 /proc/self/fd/3"))
    _in_guest(stage, "until [ -e /tmp/open ]; do :; done")
    _on_host(stage, "stopper", _STOP_THE_BACK_END)
    _in_guest(stage, "touch /tmp/stopped")
    _in_guest(stage, "until grep -q fuse_do_setattr /proc/[0-9]*/stack; do :; done 2>/dev/null")


def _stop_probe(stage: Stage) -> None:
    _fault(stage)
    _in_guest(stage, f"kill -STOP {stage.armed.task.report().pid}")


def _behind(command: str) -> str:
    """The same in the background, with nothing of the connection's."""
    return f"({command}) </dev/null >/dev/null 2>&1 &"


def _keep_guest_busy(stage: Stage) -> None:
    for _ in range(2):
        _in_guest(stage, _behind("while :; do :; done"))


def _second_reader(stage: Stage) -> None:
    """A task that reads the page with read(2), again and again.

    It opens the file each time, by which the guest learns how long it is: nothing for a case whose
    file is cut.
    """
    view = stage.armed.scene.view
    number = (view.start + view.offset) // PAGE_SIZE
    read = f"dd if={view.path} of=/dev/null bs={PAGE_SIZE} skip={number} count=1"
    _in_guest(stage, _behind(f"while :; do {read}; done"))


def _second_task(stage: Stage) -> None:
    """One more probe, which has touched the page as the first has, and never asks for its file."""
    view = stage.armed.scene.view
    stage.second = Probe(start(stage.testbed.guest))
    stage.second.request(view, SECOND_ACCESS, 0, page_first=True)
    stage.second.arm(Deadline(_PATIENCE, "the second task to touch the page"))


def _let_the_second_go(stage: Stage, _seconds: float) -> None:
    if stage.second is not None and stage.once("second task"):
        stage.second.go()


def _burn(stage: Stage) -> None:
    for number in range(3):
        _on_host(stage, f"burner-{number}", _BURN)


# --- with the VM ------------------------------------------------------------------------


def _pause(stage: Stage) -> None:
    _fault(stage)
    stage.testbed.recorder.execute("stop")


def _pause_and_resume(stage: Stage, seconds: float) -> None:
    if stage.once("stop"):
        stage.testbed.recorder.execute("stop")
    elif seconds >= PAUSE and stage.once("cont") and _is(stage, "paused"):
        stage.testbed.recorder.execute("cont")


def _snapshot(stage: Stage, _seconds: float) -> None:
    """Write a part of guest memory out, for which QEMU stops the VM (QAPI dump.json)."""
    if stage.once("dump") and _is(stage, "running"):
        where = {"begin": 1 << 20, "length": 32 << 20, "protocol": "file:/dev/null"}
        stage.testbed.recorder.execute("dump-guest-memory", {"paging": False, **where})


def _is(stage: Stage, state: str) -> bool:
    return bool(stage.testbed.recorder.execute("query-status")["status"] == state)


def _cut_the_line(stage: Stage, _seconds: float) -> None:
    """No word comes from the guest any more, once the access has begun."""
    if stage.is_touching and stage.once("cut"):
        stage.testbed.recorder.execute("set_link", {"name": "net", "up": False})


SITUATIONS: Mapping[str, Doing] = {
    **dict.fromkeys(
        (
            *("spins", "spins-in-full-ram", "exits", "guest-truncates", "poisoned"),
            *("intact", "intact-ram"),
        ),
        Doing(_fault),
    ),
    "regrown": Doing(_regrow),
    "slow-page-in": Doing(_slow, _back_after),
    "slow-failures": Doing(_slow),
    "host-still-fetches": Doing(_slow),
    "taken-again": Doing(_take_again),
    **dict.fromkeys(DEFECTS, Doing(_mutate)),
    "guest-panics": Doing(_panic_guest),
    "host-panics": Doing(_panic_host),
    "qemu-crashes": Doing(_end_qemu),
    "qemu-touches-the-page": Doing(_let_qemu_touch),
    "qemu-is-killed": Doing(_end_qemu),
    "back-end-dies": Doing(_end_back_end),
    "lying-guest": Doing(_fault, enter=lambda bed: dataclasses.replace(bed, guest=Liar(bed.guest))),
    "guest-halts": Doing(_halt_guest),
    "guest-deadlocks": Doing(_deadlock_guest),
    "probe-stopped": Doing(_stop_probe),
    "vm-paused": Doing(_pause),
}
DISTURBANCES: Mapping[str, Doing] = {
    "": Doing(),
    "busy-guest": Doing(_keep_guest_busy),
    "second-reader": Doing(_second_reader),
    "second-task": Doing(_second_task, _let_the_second_go),
    "starved-vcpu": Doing(_burn),
    "paused-and-resumed": Doing(meanwhile=_pause_and_resume),
    "snapshot": Doing(meanwhile=_snapshot),
    "ssh-lost": Doing(meanwhile=_cut_the_line),
}
