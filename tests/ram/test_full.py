"""Guest memory is a file on a tmpfs, and that is full when a page is touched for the first time."""

from hostfault.case.model import VerdictKind
from hostfault.plugin.cases import Case, each_case

ACCESSES = ("load", "store", "read", "write")


@each_case("ram", faults=("none",), accesses=ACCESSES)
def test_control(case: Case) -> None:
    case.must_be(VerdictKind.OK)


@each_case("ram", faults=("full",), accesses=ACCESSES)
def test_full(case: Case) -> None:
    case.must_be_told()
