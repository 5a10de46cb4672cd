"""The host truncates a file whose page a guest task has mapped, and the task touches it again."""

from hostfault.cases import Case, each_case
from hostfault.model import Fault


@each_case("virtiofs-dax", faults=(Fault.ZERO, Fault.MIDDLE))
def test_truncate(case: Case) -> None:
    case.must_be_told()
