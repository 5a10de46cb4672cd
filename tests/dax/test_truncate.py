"""The host truncates a file whose page a guest task has mapped, and the task touches it again."""

from hostfault.plugin.cases import Case, each_case


@each_case("virtiofs-dax", faults=("zero", "middle"), accesses=("load", "store"))
def test_truncate(case: Case) -> None:
    case.must_be_told()
