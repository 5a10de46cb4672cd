"""An emulated Intel host, for real: one case on a machine in Bochs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hostfault.case.model import Scenario, VerdictKind
from hostfault.case.settings import Settings
from hostfault.host.bochs import CPU
from hostfault.plumbing.errors import MissingCapabilityError, SetupError
from hostfault.run.lab import Lab

# Bochs runs on one core, and a boot of host and guest takes it a minute and a half.
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)


def listening_ports() -> set[str]:
    """TCP sockets of this machine on which somebody listens (proc(5), /proc/net/tcp: state 0A)."""
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    return {fields[9] for fields in lines if fields[3] == "0A"}


def own_sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process has open."""
    links = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
    return {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}


def test_the_vcpu_spins_on_intel_too_and_the_second_case_is_a_fork(tmp_path: Path) -> None:
    with Lab(Settings(cpu="intel")) as lab:
        records = [lab.run("spins", SCENARIO, tmp_path / name) for name in ("first", "second")]
    for record in records:
        assert record.verdict.kind is VerdictKind.SPIN, record.verdict.summary
        told = " ".join(record.verdict.evidence)
        assert "KVM tracepoint kvm_page_fault" in told
        assert "pf_taken" in told
    assert records[1].cached
    assert records[0].facts.host_cpu == CPU


def test_the_host_is_an_intel_machine_with_ept_and_opens_no_port(tmp_path: Path) -> None:
    with Lab(Settings(cpu="intel")) as lab, lab.testbed(SCENARIO, tmp_path) as testbed:
        ept, _ = testbed.agent.read("/sys/module/kvm_intel/parameters/ept")
        bochs = [
            int(each.name)
            for each in Path("/proc").iterdir()
            if each.name.isdigit() and "bochs-bin" in _command_of(each)
        ]
        ours = set().union(*(own_sockets(pid) for pid in bochs))
        assert bochs
        assert not ours & listening_ports()
    assert ept == "Y\n"


def test_without_ept_a_case_is_skipped_for_no_address_can_be_counted(tmp_path: Path) -> None:
    with (
        Lab(Settings(cpu="intel", kvm_options=("ept=0",))) as lab,
        pytest.raises(MissingCapabilityError, match="is two-dimensional paging off") as caught,
    ):
        lab.run("ept", SCENARIO, tmp_path)
    assert caught.value.capability == "tracing"


def test_without_unrestricted_guests_the_vcpu_spins_all_the_same(tmp_path: Path) -> None:
    parameter = "/sys/module/kvm_intel/parameters/unrestricted_guest"
    with Lab(Settings(cpu="intel", kvm_options=("unrestricted_guest=0",))) as lab:
        record = lab.run("spins", SCENARIO, tmp_path / "case")
        assert record.verdict.kind is VerdictKind.SPIN, record.verdict.summary
        with lab.testbed(SCENARIO, tmp_path / "look") as testbed:
            assert testbed.agent.read(parameter)[0] == "N\n"


def test_a_command_of_a_developers_runs_in_the_intel_host() -> None:
    line = [sys.executable, "-P", "-m", "hostfault.shell", "--cpu", "intel", "--host"]
    done = subprocess.run(
        [*line, "--run", "grep -c vmx /proc/cpuinfo; exit 7"],
        capture_output=True,
        text=True,
        timeout=900.0,  # seconds: where there is no snapshot yet, one is made
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout == "2\n"  # among the features of its one CPU, and those of its VMX


def _command_of(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def test_a_parameter_that_kvm_intel_lacks_is_an_error(tmp_path: Path) -> None:
    with (
        Lab(Settings(cpu="intel", kvm_options=("npt=0",))) as lab,
        pytest.raises(SetupError, match="HOSTFAULT-ERROR kvm_intel has no parameter npt"),
    ):
        lab.run("npt", SCENARIO, tmp_path)
