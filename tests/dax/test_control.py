"""The same touch where KVM is not asked for the impossible: proof that the tests can tell."""

import signal

from hostfault.case.model import VerdictKind
from hostfault.plugin.cases import Case, each_case


@each_case("virtiofs-dax", faults=("none",), accesses=("load", "store"))
def test_control(case: Case) -> None:
    case.must_be(VerdictKind.OK)


@each_case("virtiofs-dax", faults=("guest",), accesses=("load", "store"))
def test_the_guests_own_truncation(case: Case) -> None:
    case.must_be_signal(signal.SIGBUS)
