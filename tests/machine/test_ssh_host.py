"""A host over SSH, for real: the machine of the lab is an emulated host of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_machine import NAME, LabMachine, configured, lab_machine, pytest_from

from hostfault.case.model import Scenario, Verdict, VerdictKind
from hostfault.case.settings import Settings
from hostfault.case.verdict import final_verdict
from hostfault.fault import Scene
from hostfault.host import remote
from hostfault.host.leased import leased
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import ConnectionLostError, SetupError
from hostfault.plumbing.progress import heard_by
from hostfault.remote.openssh import Target
from hostfault.run.arm import arm
from hostfault.run.lab import Lab
from hostfault.run.observe import observe

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

CONTROL = Scenario("virtiofs-dax", "none", "load", async_pf=True)
SOME = 200 << 20  # bytes; the machine has room for them


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabMachine]:
    with lab_machine(tmp_path_factory.mktemp("lab-machine")) as found:
        yield found


@pytest.fixture
def at_home(machine: LabMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process finds the machine, too."""
    for name, value in machine.environment.items():
        monkeypatch.setenv(name, value)


def verdict_of(folder: Path) -> dict[str, object]:
    (found,) = folder.glob("*/verdict.json")
    told: dict[str, object] = json.loads(found.read_text())
    return told


def test_a_case_on_a_lab_machine_proves_the_spin_and_leaves_nothing(
    machine: LabMachine, tmp_path: Path
) -> None:
    done = machine.pytest("-k", "zero-load-apf", "tests/dax", "--artifacts", str(tmp_path / "a"))
    assert re.search(r"host: ssh, 7\.", done.stdout)
    assert re.search(r"virtiofs-dax +zero +load +async-pf +SPIN", done.stdout)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    told = verdict_of(tmp_path / "a")
    assert told["host_cpu"] == "QEMU Virtual CPU version 2.5+"
    assert str(told["host_microcode"]).startswith("0x")
    assert machine.left() == ""


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize(
    ("wreck", "mend", "complaint"),
    [
        ("mv /dev/kvm /dev/away", "mv /dev/away /dev/kvm", "there is no /dev/kvm"),
        (
            "busybox dd if=/dev/zero of=/tmp/full bs=1M",
            "rm /tmp/full",
            "/tmp: . MiB are free, .* /var/tmp: ",
        ),
        (
            "mount -o remount,noexec /tmp",
            "mount -o remount,exec /tmp",
            "/tmp: programs may not run there",
        ),
    ],
    ids=("no-kvm", "full-disk", "noexec"),
)
def test_a_machine_that_lacks_something_is_one_clear_error(
    machine: LabMachine, wreck: str, mend: str, complaint: str
) -> None:
    patience = Deadline(60.0, "the machine to be changed")
    machine.shell.run(wreck, patience)
    try:
        with pytest.raises(SetupError, match=complaint), leased(Target(NAME), SOME):
            pass
    finally:
        machine.shell.check(mend, patience)
    assert machine.left() == ""


@pytest.mark.usefixtures("at_home")
def test_two_runs_on_one_machine_are_one_and_an_error(machine: LabMachine) -> None:
    with leased(Target(NAME), SOME):
        done = machine.pytest("-k", "zero-load", "tests/dax")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 errors" in done.stdout
    assert "another run of hostfault is using this machine" in done.stdout
    assert machine.left() == ""


def test_all_of_dax_has_its_verdicts(machine: LabMachine) -> None:
    done = machine.pytest("tests/dax")
    assert len(re.findall(r"virtiofs-dax +(?:zero|middle) .* SPIN", done.stdout)) == 12
    assert "12 failed, 6 passed" in done.stdout
    assert machine.left() == ""


def test_two_machines_share_the_cases(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    with lab_machine(tmp_path / "1") as first, lab_machine(tmp_path / "2") as second:
        environment = configured(tmp_path / "home", {"one": first.ssh, "two": second.ssh})
        hosts = ("-n", "2", "--host", "ssh://one", "--host", "ssh://two")
        done = pytest_from(environment, *hosts, "-k", "zero-load or none-load", "tests/dax")
        assert "2 failed, 2 passed" in done.stdout
        for name in ("one", "two"):
            assert f"on ssh://{name}" in done.stdout
        assert first.left() == second.left() == ""


@pytest.mark.usefixtures("at_home")
class TestItsEnd:
    """While a case is observed; the machine serves nobody afterwards."""

    def verdict_after(self, folder: Path, machine: LabMachine, command: str) -> Verdict:
        settings = Settings(host=f"ssh://{NAME}", host_console=str(machine.console))

        def wreck(_: Scene) -> None:
            machine.shell.open(command, Deadline(20.0, "the machine to be wrecked"))

        with (
            heard_by(print),
            Lab(settings) as lab,
            lab.testbed(CONTROL, folder) as testbed,
        ):
            armed = arm(testbed, CONTROL)
            return final_verdict(observe(testbed, armed, wreck))

    def test_a_connection_that_breaks_is_an_error_and_the_machine_clears_up_by_itself(
        self, machine: LabMachine, tmp_path: Path
    ) -> None:
        """Of all its SSH sessions but ours, as when a firewall forgets them."""
        mine = "busybox ps -o pid,args | busybox grep '[d]ropbear' | busybox tail -n +3"
        cut = f"for each in $({mine} | busybox awk '{{print $1}}'); do kill -9 $each; done"
        with pytest.raises(ConnectionLostError):
            self.verdict_after(tmp_path, machine, cut)
        clear = Deadline(60.0, "the machine to clear up")
        poll(clear, lambda: None if machine.left() else True, interval=0.5)

    def test_a_kernel_that_panics_is_a_host_death_by_its_console(
        self, machine: LabMachine, tmp_path: Path
    ) -> None:
        verdict = self.verdict_after(tmp_path, machine, "echo c >/proc/sysrq-trigger")
        assert verdict.kind is VerdictKind.HOST_DEATH
        assert "sysrq" in " ".join(verdict.evidence) + verdict.summary


@pytest.mark.usefixtures("at_home")
def test_a_machine_that_comes_back_as_another_boot_has_died(
    machine: LabMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one behind the same name is another one by then: the first is dead."""
    monkeypatch.setattr(remote, "RETURN_PATIENCE", 60.0)
    with lab_machine(tmp_path / "first") as first:
        monkeypatch.setenv("HOME", first.environment["HOME"])
        config = Path(first.environment["HOME"]) / ".ssh/config"
        with (
            leased(Target(NAME), SOME) as lease,
            lab_machine(tmp_path / "second") as second,
        ):
            theirs = Path(second.environment["HOME"]) / ".ssh/config"
            config.write_text(theirs.read_text())
            ended = remote.RemoteLife(lease, remote.Console("")).ended_silently("no answer")
    assert ended is not None
    assert "is back with boot id" in ended.words
