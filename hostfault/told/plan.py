"""The cells of docs/told.md: a kernel, a policy of the VMM, a guest, and a case each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from hostfault.access import ACCESSES
from hostfault.backing.store import FOLDER
from hostfault.case.model import STOCK, Scenario
from hostfault.case.settings import CPUS, Settings
from hostfault.host.emulated import DIRECTORY

STOCK_KERNEL = "7.3.4"
THREAD = "7.3.4+error-table"  # as the thread's patch, v4, has it
AT_ONCE = "7.3.4+fail-at-once"
OURS = "7.3.4+tell-user-space"
LATE = "7.3.4+tell-user-space-late"
OLDER = "6.12+tell-user-space"
DIMM_AT = 0x1_0800_0000  # where a guest has its DIMM: above 4 GiB, a memory block of its own
PLAIN_QEMU, OUR_QEMU = "10.0+unchanged", "10.0+on-unbacked"


@dataclass(frozen=True)
class Tasks:
    """A crowd in place of the probe (images/probe/crowd.c)."""

    all: int
    pages: tuple[int, ...]  # of those that touch one, in the file; the others are busy


@dataclass(frozen=True)
class Measurement:
    """One measurement; its key is unique, and names it on the command line."""

    table: str  # of docs/told.md
    key: str
    scenario: Scenario
    kernel: str = OURS  # of the host
    policy: str = "mce"
    guest_kernel: str | None = None
    qemu: str = "image"  # of the guest
    qemu_options: tuple[str, ...] = ()
    guest_append: tuple[str, ...] = ()
    words: str = ""  # what is special about it
    tasks: Tasks | None = None
    cpu: str = CPUS[0]  # of the emulated host

    @property
    def settings(self) -> Settings:
        """What a lab is made with; cells with the same settings share one."""
        return Settings(
            host="emulated",
            cpu=self.cpu,
            host_kernel=self.kernel,
            guest_kernel=self.guest_kernel,
            qemu=self.qemu,
            qemu_options=self.qemu_options,
            guest_append=self.guest_append,
            vmm_policy=self.policy,
            accept="task",
        )


def _dax(access: str, fault: str = "zero", *, apf: bool = True, vcpus: int = 1) -> Scenario:
    return Scenario("virtiofs-dax", fault, access, apf, vcpus)


def _ram(access: str, fault: str = "full") -> Scenario:
    return Scenario("ram", fault, access, async_pf=True)


def _outcomes() -> list[Measurement]:
    """The same load of a truncated page for every kernel and policy."""
    rows = (
        ("stock", STOCK_KERNEL, STOCK, "KVM as it is"),
        ("thread", THREAD, STOCK, "the thread's fix"),
        ("at-once", AT_ONCE, STOCK, ""),
        ("ours-stock", OURS, STOCK, "the capability is not enabled"),
        ("ours-stop", OURS, "stop", ""),
        ("ours-mce", OURS, "mce", ""),
        ("at-once-mce", AT_ONCE, "mce", ""),
        ("late-mce", LATE, "mce", "the error shows after an asynchronous fault only"),
        ("older-mce", OLDER, "mce", "host kernel 6.12"),
    )
    return [
        Measurement("outcomes", name, _dax("load"), kernel, policy, words=words)
        for name, kernel, policy, words in rows
    ]


def _cases() -> list[Measurement]:
    """Every truncated case of ci/dax, and a full tmpfs below plain guest memory."""
    touched = product(("zero", "middle"), ("load", "store"), (True, False))
    called = product(("zero",), ("read", "write"), (True, False))
    dax = [_dax(access, fault, apf=apf) for fault, access, apf in (*touched, *called)]
    ram = [_ram(access) for access in ("load", "store", "read", "write")]
    return [Measurement("cases", f"mce-{_short(each)}", each) for each in (*dax, *ram)]


def _stops() -> list[Measurement]:
    """The same where the vCPU is kept out of the guest until the page is back."""
    accesses = ("load", "store", "read", "write")
    every = [*(_dax(access) for access in accesses), *(_ram(access) for access in accesses)]
    return [Measurement("stops", f"stop-{_short(each)}", each, policy="stop") for each in every]


def _guests() -> list[Measurement]:
    """A store to a truncated page, by guests of many kinds."""
    store, four = _dax("store"), _dax("store", vcpus=4)
    intel = ("-cpu", "host,vendor=GenuineIntel")
    no_mca = ("-cpu", "host,-mca,-mce")
    return [
        Measurement("guests", "guest-4-vcpus", four, words="4 vCPUs"),
        Measurement(
            "guests", "guest-intel", store, qemu_options=intel, words="an Intel CPU by its CPUID"
        ),
        Measurement("guests", "guest-intel-4", four, qemu_options=intel, words="the same, 4 vCPUs"),
        Measurement("guests", "guest-no-mca", store, qemu_options=no_mca, words="no MCA"),
        Measurement("guests", "guest-6.12", store, guest_kernel="6.12", words="guest kernel 6.12"),
        Measurement("guests", "guest-6.1", store, guest_kernel="6.1", words="guest kernel 6.1"),
    ]


def _intel() -> list[Measurement]:
    """A truncated page on a host with Intel's half of KVM, and Intel's machine check."""
    rows = (
        ("stock", STOCK_KERNEL, STOCK, _dax("load")),
        ("at-once", AT_ONCE, STOCK, _dax("load")),
        ("stop", OURS, "stop", _dax("load")),
        ("mce-load", OURS, "mce", _dax("load")),
        ("mce-store", OURS, "mce", _dax("store")),
        ("mce-read", OURS, "mce", _dax("read")),
        ("mce-noapf", OURS, "mce", _dax("load", apf=False)),
    )
    return [
        Measurement("intel", f"intel-{name}", case, kernel, policy, cpu="intel")
        for name, kernel, policy, case in rows
    ]


def _hard() -> list[Measurement]:
    """Every other access that there is, to a truncated page.

    Those that begin in the page before want that one to be there.
    """
    plain, across = ("load", "store", "read", "write"), ("cross", "movs")
    cases = [
        _dax(access.name, "middle" if access.name in across else "zero")
        for access in ACCESSES
        if access.name not in plain
    ]
    return [
        Measurement("hard", f"{policy}-{_short(case)}", case, policy=policy)
        for policy in ("mce", "stop")
        for case in cases
    ]


def _crowds() -> list[Measurement]:
    """Several tasks on pages that are gone; 128 with 32 bad is the thread's case."""
    both, many = Tasks(2, (5, 5)), Tasks(128, tuple(range(0, 512, 16)))
    rows = (
        ("two-tasks", both, 1, "mce", "2 tasks, one page"),
        ("crowd", many, 1, "mce", "128 tasks, 32 on pages of their own"),
        ("crowd-4-vcpus", many, 4, "mce", "the same, 4 vCPUs"),
        ("crowd-stop", many, 1, "stop", "the same, 1 vCPU"),
    )
    return [
        Measurement(
            "crowds", key, _dax("load", vcpus=vcpus), policy=policy, words=words, tasks=tasks
        )
        for key, tasks, vcpus, policy, words in rows
    ]


def _qemus() -> list[Measurement]:
    """QEMU's own policies, by its memory backend; and what must stay as it is without."""
    rows = [
        *((_ram(access), OURS, OUR_QEMU, "qemu-stop") for access in ("load", "store")),
        *((_ram(access), OURS, OUR_QEMU, "qemu-stop") for access in ("read", "write")),
        (_ram("store", "zero"), OURS, OUR_QEMU, "qemu-stop"),
        *((_ram(access, "zero"), OURS, OUR_QEMU, "qemu-mce") for access in ("load", "store")),
        (_ram("store"), OURS, OUR_QEMU, "qemu-mce"),
        *((_ram("store", fault), OURS, OUR_QEMU, "qemu-auto") for fault in ("zero", "full")),
        (Scenario("ivshmem", "zero", "store", async_pf=True), OURS, OUR_QEMU, "qemu-auto"),
        (_ram("store", "zero"), STOCK_KERNEL, OUR_QEMU, "qemu-auto"),
        (_ram("store", "zero"), OURS, OUR_QEMU, STOCK),
        (_ram("store", "zero"), OURS, PLAIN_QEMU, STOCK),
    ]
    return [
        Measurement("qemus", _key(case, kernel, qemu, policy), case, kernel, policy, qemu=qemu)
        for case, kernel, qemu, policy in rows
    ]


def _key(case: Scenario, kernel: str, qemu: str, policy: str) -> str:
    words = [policy, case.backing, case.fault, case.access]
    words += ["on-stock"] if kernel == STOCK_KERNEL else []
    words += ["unchanged"] if qemu == PLAIN_QEMU else []
    return "-".join(words)


def _same() -> list[Measurement]:
    """What must be the same with and without all this: controls, and poisoned memory."""
    cases = [_dax("load", fault) for fault in ("none", "guest", "hwpoison")]
    return [
        Measurement("same", f"{name}-{each.fault}", each, kernel, policy)
        for each in cases
        for name, kernel, policy in (("stock", STOCK_KERNEL, STOCK), ("ours", OURS, "mce"))
    ]


def _saves() -> list[Measurement]:
    """A guest that is saved while a page of its memory is gone, in each state that there is."""
    rows = (
        ("spins", _ram("store"), STOCK_KERNEL, STOCK, "image", "spins"),
        ("spins-cut", _ram("store", "zero"), STOCK_KERNEL, STOCK, "image", "spins"),
        ("waits", _ram("store"), OURS, "stop", "image", "is kept out of the guest"),
        ("told", _ram("store", "zero"), OURS, "mce", "image", "has told its task"),
        ("stopped", _ram("store"), OURS, "qemu-stop", OUR_QEMU, "has stopped the VM"),
    )
    return [
        Measurement("saves", f"save-{name}", case, kernel, policy, qemu=qemu, words=words)
        for name, case, kernel, policy, qemu, words in rows
    ]


def _own() -> list[Measurement]:
    """The guest's kernel takes memory for itself that the host does not have."""
    file = f"{DIRECTORY}/{FOLDER}/dimm"
    dimm = (
        *("-m", "slots=1"),
        *("-object", f"memory-backend-file,id=dimm,size=128M,share=on,mem-path={file}"),
        *("-device", f"pc-dimm,memdev=dimm,addr={DIMM_AT:#x}"),
    )
    case = Scenario("virtio-pmem", "full", "load", async_pf=True)
    rows = ((STOCK_KERNEL, STOCK), (AT_ONCE, STOCK), (OURS, "mce"), (OURS, "stop"))
    return [
        Measurement(
            "own",
            f"own-{policy}" if kernel != AT_ONCE else "own-at-once",
            case,
            kernel,
            policy,
            qemu_options=dimm,
            guest_append=("memhp_default_state=offline",),
        )
        for kernel, policy in rows
    ]


def _exits() -> list[Measurement]:
    """The same work in a guest without any fault, the capability there or not, enabled or not."""
    rows = (
        ("stock", STOCK_KERNEL, STOCK, "KVM as it is"),
        ("ours", OURS, STOCK, "the capability is not enabled"),
        ("enabled", OURS, "mce", "it is enabled"),
    )
    return [
        Measurement("exits", f"exits-{name}", _dax("load", "none"), kernel, policy, words=words)
        for name, kernel, policy, words in rows
    ]


def _short(scenario: Scenario) -> str:
    apf = "apf" if scenario.async_pf else "noapf"
    return f"{scenario.backing}-{scenario.fault}-{scenario.access}-{apf}"


CELLS: tuple[Measurement, ...] = (
    *(*_outcomes(), *_cases(), *_hard()),
    *(*_stops(), *_qemus(), *_same(), *_guests(), *_intel(), *_crowds()),
    *(*_own(), *_saves(), *_exits()),
)
