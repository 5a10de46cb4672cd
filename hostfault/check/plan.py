"""Situations whose truth is known because they were made so, and random cases of them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from hostfault.case.model import Scenario, VerdictKind

STOCK = "7.3.4"
MUTANTS = "7.3.4+mutants"  # as stock, until its parameters choose a defect or a delay
FIXED = ("7.3.4+fail-at-once", "7.3.4+error-table", "7.3.4+exit-request")
USER, KERNEL = ("load", "store"), ("read", "write")
ANY, READING = USER + KERNEL, ("load", "read")

# What goes on beside an access and changes nothing about its truth (acts.DISTURBANCES).
MILD = ("", "busy-guest", "starved-vcpu", "paused-and-resumed", "snapshot")
HARSH = (*MILD, "second-task", "ssh-lost")


@dataclass(frozen=True)
class Situation:
    """A kind of case; how it is brought about stands in :mod:`hostfault.check.acts`."""

    name: str
    truth: VerdictKind | None  # None: nothing may be proven, for it is not about the page
    kernels: tuple[str, ...] = (STOCK, MUTANTS)
    backing: str = "virtiofs-dax"
    faults: tuple[str, ...] = ("zero", "middle")
    accesses: tuple[str, ...] = ANY
    async_pf: tuple[bool, ...] = (True, False)
    disturbances: tuple[str, ...] = ("",)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)  # by what they are of
    terms: Mapping[str, object] = field(default_factory=dict)  # what changes of the fault's own
    silence: bool = False  # that nothing is proven would be right, too: it takes too long, say
    weight: int = 4  # how often it comes, beside others


# The host can back the page after all: it reads as zeroes, as a file that grew again does.
_BACK = {"expected": 0}

SITUATIONS: tuple[Situation, ...] = (
    # The truths that hostfault exists for.
    Situation("spins", VerdictKind.SPIN, disturbances=HARSH, weight=24),
    Situation(
        "spins-in-full-ram",
        VerdictKind.SPIN,
        kernels=(STOCK,),
        backing="ram",
        faults=("full",),
        disturbances=MILD,
        weight=8,
    ),
    Situation("exits", VerdictKind.VM_EXIT, kernels=FIXED, disturbances=MILD, weight=16),
    Situation(
        "guest-truncates",
        VerdictKind.TASK_ERROR,
        faults=("guest",),
        accesses=USER,
        disturbances=MILD,
        weight=6,
    ),
    Situation(
        "poisoned",
        VerdictKind.TASK_ERROR,
        faults=("hwpoison",),
        accesses=USER,
        disturbances=MILD,
        weight=6,
    ),
    Situation("intact", VerdictKind.OK, faults=("none",), disturbances=HARSH[:-1], weight=12),
    Situation(
        "intact-ram",
        VerdictKind.OK,
        kernels=(STOCK,),
        backing="ram",
        faults=("none",),
        disturbances=MILD,
    ),
    # The page is late, or comes and goes.
    Situation("regrown", VerdictKind.OK, disturbances=MILD, terms=_BACK, weight=6),
    Situation(
        "slow-page-in",
        VerdictKind.OK,
        kernels=(MUTANTS,),
        disturbances=("", "busy-guest", "starved-vcpu"),
        numbers={"delay": (0.3, 2.0), "back-after": (0.1, 0.5, 1.0, 2.5)},
        terms=_BACK,
        weight=12,
    ),
    Situation(
        "slow-failures",  # one in 0.3 s: 64 of them take 20 s
        VerdictKind.SPIN,
        kernels=(MUTANTS,),
        numbers={"delay": (0.3,)},
        silence=True,
        weight=1,
    ),
    Situation(
        "host-still-fetches",
        None,
        kernels=(MUTANTS,),
        numbers={"delay": (2.0, 40.0)},
        weight=2,
    ),
    Situation(
        "taken-again",
        VerdictKind.OK,
        accesses=READING,
        disturbances=("", "second-reader"),
        terms=_BACK,
        weight=8,
    ),
    Situation(
        "retried",
        VerdictKind.OK,
        kernels=(MUTANTS,),
        numbers={"retries": (20, 63, 64, 100, 200, 500)},
        terms=_BACK,
        weight=8,
    ),
    # Defects that stock kernels do not have.
    Situation("warns", VerdictKind.HOST_BUG, kernels=(MUTANTS,), disturbances=MILD),
    Situation("zero-page", VerdictKind.STALE, kernels=(MUTANTS,), accesses=READING),
    Situation(
        "loses-the-wakeup",
        VerdictKind.STALL,
        kernels=(MUTANTS,),
        accesses=USER,  # the guest's kernel is never told to run something else meanwhile
        async_pf=(True,),
        weight=1,
    ),
    Situation("stuck-vcpu", VerdictKind.VCPU_STUCK, kernels=(MUTANTS,), weight=1),
    Situation("other-error", None, kernels=(MUTANTS,), weight=1),  # KVM_RUN fails with ENOMEM
    # Deaths.
    Situation("guest-panics", VerdictKind.GUEST_DEATH, faults=("none", "zero")),
    Situation("host-panics", VerdictKind.HOST_DEATH, faults=("none", "zero")),
    Situation(
        "qemu-crashes",
        VerdictKind.VMM_DEATH,
        faults=("none", "zero"),
        numbers={"signal": (6, 11)},
    ),
    Situation("qemu-touches-the-page", VerdictKind.VMM_DEATH),
    Situation("qemu-is-killed", None, faults=("none", "zero")),
    Situation("back-end-dies", None, faults=("none", "zero")),
    # Nothing of the page's doing.
    Situation("lying-guest", VerdictKind.SPIN, accesses=USER, weight=2),
    Situation("guest-halts", None, faults=("none", "zero"), weight=1),
    Situation("guest-deadlocks", None, faults=("none", "zero"), accesses=KERNEL, weight=1),
    Situation("probe-stopped", None, faults=("none", "zero"), weight=1),
    Situation("vm-paused", None, faults=("none", "zero"), weight=1),
)


@dataclass(frozen=True)
class Case:
    """One case; everything about it follows from its seed."""

    seed: str  # "SEED/NUMBER": what brings it back
    situation: Situation
    kernel: str
    scenario: Scenario
    disturbance: str  # "": none
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        apf = "apf" if self.scenario.async_pf else "noapf"
        words = [self.situation.name, self.scenario.fault, self.scenario.access, apf]
        words += [self.disturbance] if self.disturbance else []
        words += [f"{name} {value:g}" for name, value in self.numbers.items()]
        return f"{self.kernel}: {', '.join(words)}"


def case_of(seed: str, situations: Sequence[Situation] = SITUATIONS) -> Case:
    """The case that a seed stands for."""
    rng = random.Random(seed)  # noqa: S311 (to be repeated)
    situation = rng.choices(situations, [each.weight for each in situations])[0]
    kernel = rng.choice(situation.kernels)
    scenario = Scenario(
        situation.backing,
        rng.choice(situation.faults),
        rng.choice(situation.accesses),
        rng.choice(situation.async_pf),
    )
    return Case(
        seed=seed,
        situation=situation,
        kernel=kernel,
        scenario=scenario,
        disturbance=rng.choice(situation.disturbances),
        numbers={name: rng.choice(values) for name, values in situation.numbers.items()},
    )


def cases(
    seed: int, first: int, number: int, situations: Sequence[Situation] = SITUATIONS
) -> list[Case]:
    """``number`` cases of a seed from the ``first`` on, in the order of their numbers."""
    return [case_of(f"{seed}/{each}", situations) for each in range(first, first + number)]


def in_order(planned: Sequence[Case]) -> list[Case]:
    """The same so that those on one machine are neighbours: each is booted once."""
    return sorted(
        planned, key=lambda case: (case.kernel, case.scenario.backing, case.scenario.async_pf)
    )


def scenarios() -> Iterator[Scenario]:
    """Every scenario that a case can have."""
    for each in SITUATIONS:
        for fault, access, apf in product(each.faults, each.accesses, each.async_pf):
            yield Scenario(each.backing, fault, access, apf)
