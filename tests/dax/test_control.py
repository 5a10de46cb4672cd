"""The same touch where KVM is not asked for the impossible: proof that the tests can tell."""

import signal

from hostfault.case.model import Fault, VerdictKind
from hostfault.plugin.cases import Case, each_case


@each_case("virtiofs-dax", faults=(Fault.NONE, Fault.GUEST), async_pf=(True,))
def test_control(case: Case) -> None:
    if case.scenario.fault is Fault.NONE:
        case.must_be(VerdictKind.OK)
    else:
        case.must_be_signal(signal.SIGBUS)
