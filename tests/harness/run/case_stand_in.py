"""A case whose machines only pretend: an agent, a QEMU, a host, a probe and a guest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from hostfault.backing import GuestView
from hostfault.case.model import Ended, Event, Page, Scenario, Terms
from hostfault.fault import Scene
from hostfault.guest.probe import Probe, parse
from hostfault.host.testbed import HostLife, OutlivesUs, Testbed
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.run.arm import Armed, Running
from hostfault.run.liveness import Liveness

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
GFN = 0xF8008
RIP = 0x4016B5
ARMED = f'{{"step": "armed", "address": "0x7f0000008000", "rip": "{RIP:#x}"}}\n'
RUNNING = Running("7.3.4", "", "abcd", host_log_read=True)


class PretendedAgent:
    """A host on which the guest spins; it stops to answer after some samples."""

    def __init__(
        self, answers: int = 10**6, qemu_code: int | None = None, faults: int = 100
    ) -> None:
        self.events = ["kvm_page_fault"]
        self.how = "tracefs"
        self.parameters: dict[str, str] = {}
        self.gone: dict[str, int] = {}
        self.room_made = False
        self.faults = faults  # from one sample to the next
        self.answers = answers
        self.samples = 0
        self.hellos = 0
        self.qemu_code = qemu_code
        self.huge = (0, 0)  # bytes that QEMU has mapped, and those by huge pages

    def huge_in(self, *_: object) -> tuple[int, int]:
        return self.huge

    def sample(
        self,
        _name: str,
        tails: Sequence[str],
        _gfn: int,
        address: int | None = None,
        place: tuple[int, int] | None = None,
    ) -> Mapping[str, Any]:
        if self.samples >= self.answers:
            raise ConnectionLostError("waited 10.0 s for the host's agent to answer sample")
        self.samples += 1
        count = self.faults * (self.samples - 1)
        return {
            "faults": [[GFN, RIP, count]],
            "async_started": [[GFN, count]],
            "async_ready": [[GFN, count]],
            "exits": [],
            "backed": None if address is None else False,
            "unanswered": None,
            "touches": None,
            "worker_seconds": 0.0,
            "gone": self.gone,
            "vcpu_seconds": 0.05 * self.samples,
            "ended": self.qemu_code if self.samples > 1 else None,
            "tails": ["" for _ in tails],
        }

    def hello(self) -> Mapping[str, Any]:
        self.hellos += 1
        if self.samples > 0 and self.samples >= self.answers:
            raise ConnectionLostError("waited 10.0 s for the host's agent to answer hello")
        return {}

    def program_of(self, *_: object) -> str:
        return "abcd"

    def trace(self, *, anew: bool) -> list[str]:
        return self.events

    def reads_kernel_log(self) -> bool:
        return True

    def counted_by(self) -> tuple[str, str]:
        return self.how, ""

    def read(self, path: str, *_: object) -> tuple[str, int]:
        if path not in self.parameters:
            raise HostfaultError(f"read failed on the host: {path}")
        return self.parameters[path], 0

    def truncate(self, _path: str, _size: int) -> int:
        """Undoing a truncation gives the page back."""
        self.room_made = True
        return 0

    def tails(self, paths: Sequence[str], _limit: int) -> list[str]:
        return ["" for _ in paths]

    def kernel_log(self) -> str:
        return ""

    def stacks(self, _name: str) -> tuple[str, ...]:
        return ()

    def byte(self, *_: object) -> None:
        return None


class PretendedQemu:
    """The QMP of a QEMU whose guest runs."""

    version = "11.1.3"

    def execute(self, command: str, *_: object) -> Any:
        return {"status": "running"} if command == "query-status" else []

    def ask(self, command: str, *_: object) -> Callable[[], Any]:
        return lambda: self.execute(command)

    def ask_monitor(self, line: str) -> Callable[[], str]:
        return lambda: self.monitor(line)

    def monitor(self, _line: str) -> str:
        return "CPU#0 RIP=..."

    def events(self) -> tuple[Event, ...]:
        return ()

    def wait_changed(self, _seconds: float) -> None:
        return


class PretendedHost:
    """An emulated host of which QEMU says that it runs; a new SSH login works, or not."""

    on_tcg = True

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers

    def ended(self) -> Ended | None:
        return None

    def ended_silently(self, silence: str) -> Ended | None:
        return None if self.answers else Ended(None, None, f"{silence}\nregisters")

    def events(self) -> tuple[Event, ...]:
        return ()


class PretendedProbe:
    """A probe that is armed and never comes back."""

    def __init__(self, go: Callable[[], None] = lambda: None) -> None:
        self.go = go

    def report(self) -> Any:
        return parse(ARMED)

    def listen(self, _seconds: float) -> bool:
        return True


class PretendedGuest:
    """A guest that took a command once, and whose connection is lost since."""

    def open(self, *_: object) -> Any:
        return self

    def settimeout(self, _timeout: float) -> None:
        return

    def sendall(self, _data: bytes) -> None:
        return

    def recv(self, _size: int) -> bytes:
        raise ConnectionLostError("guest: no answer")


def case(
    agent: PretendedAgent,
    probe: PretendedProbe | None = None,
    host: HostLife | None = None,
) -> tuple[Testbed, Armed]:
    testbed = Testbed(
        cast("Any", None),
        cast("Any", agent),
        cast("Any", PretendedQemu()),
        cast("Any", PretendedGuest()),
        host=host or OutlivesUs(),
    )
    page = Page("shared/data", 0x8000, "tmpfs")
    scene = Scene(testbed.agent, testbed.guest, page, GuestView("/mnt/data", 0))
    terms = Terms(True, False, False, False, None)
    task = cast("Probe", probe or PretendedProbe())
    liveness = Liveness(testbed.guest)
    return testbed, Armed(SCENARIO, terms, scene, task, GFN, 0x7F0000000000, liveness, RUNNING)
