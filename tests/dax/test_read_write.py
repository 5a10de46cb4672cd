"""The guest's kernel touches the page for a task, in a system call."""

from hostfault.case.model import VerdictKind
from hostfault.plugin.cases import Case, each_case

SYSTEM_CALLS = ("read", "write")


@each_case("virtiofs-dax", faults=("none",), accesses=SYSTEM_CALLS)
def test_control(case: Case) -> None:
    case.must_be(VerdictKind.OK)


@each_case("virtiofs-dax", faults=("zero",), accesses=SYSTEM_CALLS)
def test_truncate(case: Case) -> None:
    case.must_be_told()
