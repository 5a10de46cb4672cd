"""What each stage hands to the next, as frozen dataclasses.

``kernel + image -> host -> guest -> backing -> fault + access -> observation -> verdict -> report``

Everything from :class:`Observation` on is plain data that survives a round trip through JSON
(:func:`to_json`, :func:`observation_from_json`), so that recorded observations replay through
the verdict without any virtual machine.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE_SIZE = 4096
STOCK = "stock"  # the VMM as it is
PLAIN = "plain"  # a case under no condition in particular


# --- kernel and image ---------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted, as host or as guest."""

    name: str  # what the person asked for: a name of the catalog, a path, NAME+SERIES, tree:PATH
    release: str  # what `uname -r` will say
    image: Path  # bzImage
    modules: Path  # the directory lib/modules/<release>
    packaged: bool  # straight from the catalog: known issues may apply
    build_id: str = ""  # srcversion or build id of the kvm module that must be running, if built


@dataclass(frozen=True)
class HostImage:
    """The root of an emulated host, and the same files unpacked for running its QEMU."""

    key: str  # hash of everything it was made from
    disk: Path  # ext4 image, read-only; boots with an overlay
    root: Path  # unpacked: enough to run QEMU by the image's own loader


@dataclass(frozen=True)
class GuestImage:
    """An initramfs with the probe, an SSH server and the modules that one guest kernel needs."""

    key: str
    initramfs: Path
    probe_source: str  # sha256 of the probe's C sources, for the record


@dataclass(frozen=True)
class Qemu:
    """A QEMU, and how to start it."""

    source: str  # "image", "system", a path, NAME+SERIES or tree:PATH
    version: str  # as it says itself, e.g. "11.1.3"
    argv: tuple[str, ...]  # the start of every command line
    build_id: str = ""  # of the program that must be running, in hex, if it was built here


# --- what a test asks for -----------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One case: everything that decides what a test does."""

    backing: str  # a name of hostfault.backing
    fault: str  # a name of hostfault.fault
    access: str  # a name of hostfault.access
    async_pf: bool  # False: the guest is booted with no-kvmapf
    vcpus: int = 1
    condition: str = PLAIN  # a name of hostfault.condition


@dataclass(frozen=True)
class Terms:
    """By which rules a case is judged: what its fault and its access say of themselves."""

    takes_page: bool  # the host takes the page out of the guest, or never gave it one
    control: bool  # the host goes on backing the page: the access must succeed
    writes: bool  # the access leaves a byte
    by_kernel: bool  # the guest's kernel touches the page for the task, at an address of its own
    expected: int | None  # the byte that the access must see or leave; None: there is no such page
    by_device: bool = False  # a device of the guest's touches the page, and no vCPU
    nested: bool = False  # a guest of the guest does: some faults are for the guest's own KVM


@dataclass(frozen=True)
class Page:
    """The page that a case is about, as the host has it."""

    path: str  # of the host file, as the host's agent names it
    offset: int  # of the page in that file, bytes
    file_system: str  # that the file lies on, e.g. "tmpfs"
    size: int = PAGE_SIZE  # of what the host has or loses at once, bytes
    private: bool = False  # what the guest has written is in a copy of QEMU's own, not in the file
    huge: bool = False  # QEMU must have been seen to have it, or its like, mapped as one huge page


# --- observation --------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameFaults:
    """Faults that the host's KVM took on one guest frame from one guest instruction."""

    gfn: int  # guest frame number
    rip: int  # guest instruction pointer (0 where the tracepoint does not tell)
    count: int  # since tracing began


@dataclass(frozen=True)
class UserspaceExit:
    """Returns of KVM_RUN to QEMU."""

    reason: int  # KVM_EXIT_* of linux/kvm.h, of the moment
    errno: int  # 0, or negative: what KVM_RUN failed with
    count: int  # since tracing began


@dataclass(frozen=True)
class VcpuPlace:
    """Where a vCPU was found by its registers, and what one of them points to."""

    rip: int
    points_to: int | None  # the case's gfn, if the guest's page tables map a register's value there


@dataclass(frozen=True)
class Sample:
    """What could be seen from outside the guest at one moment; all counts only grow."""

    at: float  # seconds since the touch (negative: before it)
    faults: tuple[FrameFaults, ...]  # tracepoint kvm:kvm_page_fault, most frequent first
    async_started: Mapping[int, int]  # kvm:kvm_try_async_get_page, count by gfn
    async_ready: Mapping[int, int]  # kvm:kvm_async_pf_ready, count by gfn
    vcpu_stats: Mapping[str, int]  # QMP query-stats, all vCPUs together (pf_taken, exits, ...)
    vcpu_seconds: float  # CPU time of the vCPU threads
    run_state: str  # QMP query-status, or "" if QEMU did not answer
    exits: tuple[UserspaceExit, ...] = ()  # kvm:kvm_userspace_exit
    backed: bool | None = None  # reading QEMU's own address of the page works (None: not asked)
    stacks: tuple[str, ...] = ()  # of the vCPU threads in the host's kernel, if none has exited
    unanswered: int | None = None  # page faults that wait for a userfaultfd's server; None: no such
    place: VcpuPlace | None = None  # None: not asked; only where no tracepoint is counted
    touches: int | None = None  # page faults of the host's own at QEMU's address; None: not counted
    worker_seconds: float = 0.0  # CPU time of QEMU's vhost workers, which are threads of its


@dataclass(frozen=True)
class VmmDeed:
    """What a VMM policy did about an exit of KVM_RUN, as its log has it (images/vmm-policy)."""

    did: str  # "loaded" | "capability" | "injected" | "passed" | "held" | "released"
    number: int  # how many of that kind there were by then, in all
    gpa: int | None = None  # guest-physical address that KVM could not back
    flags: int = 0  # KVM_MEMORY_EXIT_FLAG_*: 1 read, 2 write, 4 exec; 0: KVM does not tell
    tries: int = 0  # of "held" and "released": how often the vCPU has tried
    words: str = ""  # e.g. why the exit was handed on to QEMU


@dataclass(frozen=True)
class Outcome:
    """What became of the access, as the touching task itself reported it."""

    # "value" | "signal" | "errno" | "end" (the file ends before that byte) | "hole" (the page was
    # left out of what the kernel wrote)
    kind: str
    value: int = 0  # the byte read (or stored), the signal, or the errno
    code: int = 0  # si_code of a signal
    address: int = 0  # si_addr of a signal
    rip: int = 0  # instruction pointer in the signal frame


@dataclass(frozen=True)
class ProbeReport:
    """What the probe said, step by step, and how far it came."""

    pid: int
    mapping: int  # guest virtual address of the mapping
    address: int  # guest virtual address that is touched
    rip: int  # address of the touching instruction
    steps: tuple[str, ...]  # its lines, in order
    outcome: Outcome | None  # None: the access has not ended
    ended: bool = False  # it has hung up: no more steps will come


@dataclass(frozen=True)
class Event:
    """A QMP event, from the guest's QEMU or (host=True) from the emulated host's."""

    name: str
    at: float  # seconds since the touch
    data: Mapping[str, Any] = field(default_factory=dict)
    host: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process or a machine ended."""

    code: int | None  # exit code; None if a signal ended it, or for a machine
    signal: int | None  # signal that ended it
    words: str  # the end of its log: what it said last


class RecoveryKind(enum.StrEnum):
    """What follows when a fault is undone; never mixed with the verdict."""

    GOES_ON = "goes-on"  # the access ends by itself
    GOES_ON_AFTER_CONT = "goes-on-after-cont"  # ... once QMP `cont` has set the VM going
    LOST = "lost"  # it does not
    NOT_UNDOABLE = "not-undoable"  # the fault cannot be undone


@dataclass(frozen=True)
class Recovery:
    """What followed when the fault was undone after the proof."""

    kind: RecoveryKind
    words: str  # QEMU's answer, or what was seen last
    seconds: float = 0.0  # from undoing it to the end of the access
    stored_byte: int | None = None  # what the host has at the place, once the access has ended


@dataclass(frozen=True)
class Observation:
    """Everything recorded from before the fault until the end."""

    scenario: Scenario
    terms: Terms
    page: Page
    expected_gfn: int | None  # the frame that the access touches, computed on the host
    waited: float  # seconds from the touch to the last sample
    probe: ProbeReport
    samples: tuple[Sample, ...] = ()  # the first is from before the fault
    events: tuple[Event, ...] = ()
    registers: str = ""  # HMP `info registers`, once the VM stopped or the verdict was due
    guest_console: str = ""  # the end of it
    qemu_log: str = ""  # the end of QEMU's standard error
    qemu_ended: Ended | None = None
    back_end_ended: Ended | None = None  # what the backing runs on the host came to an end
    host_ended: Ended | None = None  # the host kernel panicked, oopsed or hung
    host_log: str = ""  # what the host kernel logged since the fault
    guest_answers: bool | None = (
        None  # a command over SSH was answered at the end (None: not asked)
    )
    stored_byte: int | None = None  # what the host file holds at the offset at the end
    host_release: str = ""  # what `uname -r` said on the host
    kvm_build_id: str = ""  # of the kvm module that was loaded there, in hex
    version: str = ""  # of hostfault
    on_tcg: bool = False  # the host's CPU is emulated: the outer QEMU runs it with TCG
    host_log_read: bool = True  # False: this user may not read the host kernel's log
    counted_by: str = "tracefs"  # what counted tracepoints: or "perf", or "" for nothing did
    seed: int = 0  # of what the access leaves to chance
    recovery: Recovery | None = None  # what followed when the fault was undone
    vmm_policy: str = STOCK  # what the VMM was to do about a page that KVM cannot back
    vmm_deeds: tuple[VmmDeed, ...] = ()  # what it did, the end of its log
    qemu_version: str = ""  # of the guest's, as it said itself by QMP
    qemu_build_id: str = ""  # of the program that ran the guest, in hex
    huge_mapped: int = 0  # bytes that QEMU had mapped of the file, all by huge pages; 0: not asked


class VerdictKind(enum.StrEnum):
    """What an observation proves; see docs/verdicts.md."""

    TASK_ERROR = "task-error"
    VM_EXIT = "vm-exit"
    SPIN = "spin"
    STALL = "stall"
    GUEST_DEATH = "guest-death"
    VMM_DEATH = "vmm-death"
    HOST_DEATH = "host-death"
    STALE = "stale"
    HOST_BUG = "host-bug"
    VCPU_STUCK = "vcpu-stuck"
    OK = "ok"


@dataclass(frozen=True)
class Verdict:
    """A verdict and its proof."""

    kind: VerdictKind
    summary: str  # one line, with the counts
    evidence: tuple[str, ...]  # one line per independent source


def to_json(value: Any) -> Any:
    """A dataclass as plain JSON data; enums become their values, mapping keys text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    return value


def observation_from_json(data: Any) -> Observation:
    """The observation that :func:`to_json` made ``data`` of.

    Raises ValueError, with the place, for a field that is missing, unknown or of another kind.
    """
    observation = _from_json(Observation, data, "observation")
    assert isinstance(observation, Observation)
    return observation


def _from_json(kind: Any, data: Any, where: str) -> Any:
    """``data`` as the annotated type ``kind``, of those that the dataclasses above use."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _dataclass_from_json(kind, data, where)
    if origin is types.UnionType:  # X | None
        return None if data is None else _from_json(arguments[0], data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(
            _from_json(arguments[0], item, f"{where}[{at}]") for at, item in enumerate(data)
        )
    if origin is Mapping and isinstance(data, dict):
        key, item = arguments
        return {key(k): _from_json(item, v, f"{where}[{k}]") for k, v in data.items()}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and type(data) is int:
        return float(data)
    if origin is not None or not isinstance(
        data, kind
    ):  # a bool will do as an int: some statistics are flags
        raise ValueError(f"{where}: {data!r} is not {getattr(kind, '__name__', kind)}")
    return data


def _dataclass_from_json(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {data!r} is not an object")
    hints = typing.get_type_hints(kind)
    if unknown := set(data) - set(hints):
        raise ValueError(f"{where}: unknown fields {sorted(unknown)}")
    values = {name: _from_json(hints[name], data[name], f"{where}.{name}") for name in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
