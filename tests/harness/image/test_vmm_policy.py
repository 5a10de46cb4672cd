"""The library that is preloaded into QEMU, between a VMM and a KVM that do as they are told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hostfault.guest.policy import deeds
from hostfault.image.vmm_policy import build_policy
from hostfault.plumbing.cache import Cache

PEER = Path(__file__).with_name("scripted_kvm.c")
# QEMU 10.0, target/i386/kvm/kvm.c, kvm_mce_inject() for BUS_MCEERR_AR; addr and misc follow.
AMD = "vcpu 0: bank 9 status 0xbc00080000000000 mcg 0x7 addr 0x1000 misc 0x8c"
INTEL = "vcpu 0: bank 9 status 0xbd80000000000134 mcg 0x7 addr 0x1000 misc 0x8c"
LOCAL = INTEL.replace("mcg 0x7", "mcg 0xf")
OTHERS = "vcpu 1: bank 1 status 0xa000000000000000 mcg 0x5 addr 0 misc 0"
INTERRUPTED, FAILED = "vcpu 0: KVM_RUN failed with EINTR", "vcpu 0: KVM_RUN failed with EFAULT"
RETURNED = "vcpu 0: KVM_RUN returned"
INTEL_GUEST = {"VENDOR": "GenuineIntel", "MCG_CAP": "100010a"}
LMCE_GUEST = {"VENDOR": "GenuineIntel", "MCG_CAP": "900010a", "LMCE": "1"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The library and the peer."""
    directory = tmp_path_factory.mktemp("vmm-policy")
    peer = directory / "peer"
    line = ["gcc", "-Wall", "-Wextra", "-Werror", "-rdynamic", "-pthread", "-o", str(peer)]
    subprocess.run([*line, str(PEER)], check=True, timeout=60)
    cache = Cache(directory / "cache")
    library = build_policy(cache)
    cache.close()
    return library, peer


class Machine:
    """Runs the peer with the library, and keeps what both said."""

    def __init__(self, built: tuple[Path, Path], directory: Path) -> None:
        self._library, self._peer = built
        self.log = directory / "log"

    def run(self, policy: str, /, **script: str) -> list[str]:
        environment = {
            "LD_PRELOAD": str(self._library),
            "HOSTFAULT_VMM_POLICY": policy,
            "HOSTFAULT_VMM_LOG": str(self.log),
            **script,
        }
        done = subprocess.run(
            [self._peer], env=environment, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode in (0, 64), done.stderr
        return (done.stdout + done.stderr).splitlines()

    def did(self) -> list[str]:
        return [deed.did for deed in deeds(self.log.read_text())]

    def why(self) -> str:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return next(str(line["why"]) for line in lines if line["did"] == "passed")


@pytest.fixture
def machine(built: tuple[Path, Path], tmp_path: Path) -> Machine:
    return Machine(built, tmp_path)


@pytest.mark.parametrize(
    ("guest", "check"),
    [({}, AMD), (INTEL_GUEST, INTEL), (LMCE_GUEST, LOCAL)],
    ids=["amd", "intel", "intel-lmce"],
)
def test_a_guest_gets_the_machine_check_of_its_vendor(
    machine: Machine, guest: dict[str, str], check: str
) -> None:
    assert machine.run("mce", **guest) == [check, INTERRUPTED, RETURNED]
    assert machine.did() == ["loaded", "capability", "injected"]


def test_a_fault_that_repeats_is_told_each_time(machine: Machine) -> None:
    assert machine.run("mce", FAULTS="3") == [*[AMD, INTERRUPTED] * 3, RETURNED]


@pytest.mark.parametrize("flags", ["1", "2", "4", "6"])
def test_a_kernel_may_tell_the_kind_of_access(machine: Machine, flags: str) -> None:
    assert machine.run("mce", FLAGS=flags)[0] == AMD
    assert deeds(machine.log.read_text())[-1].flags == int(flags)


@pytest.mark.parametrize(
    "script",
    [{"FLAGS": "8"}, {"ERRNO": "85"}, {"ERRNO": "5"}, {"REASON": "11"}, {"FLAGS": "10"}],
    ids=["private", "hwpoison", "eio", "another-exit", "unknown-flag"],
)
@pytest.mark.parametrize("policy", ["mce", "stop"])
def test_an_exit_of_another_kind_is_handed_on(
    machine: Machine, policy: str, script: dict[str, str]
) -> None:
    said = machine.run(policy, **script)
    assert said[0].startswith("vcpu 0: KVM_RUN failed with E")
    assert said[0] != INTERRUPTED
    assert machine.did() == ["loaded", "capability"]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ({"MCG_CAP": "0"}, "no machine check architecture"),
        ({"MCG_CAP": "109"}, "no machine check architecture"),  # bank 9 would be the tenth
        ({"VENDOR": "GenuineIntel"}, "no machine check that one recovers from"),
        ({"CR4": "0"}, "not enabled machine checks"),
        ({"MCG_STATUS": "4"}, "a machine check in progress"),
        ({"MCI_CTL": "0"}, "masked the bank"),
        ({"GPA": "100000"}, "no memory slot"),
    ],
)
def test_what_must_not_be_injected_is_handed_on_and_the_log_says_why(
    machine: Machine, script: dict[str, str], why: str
) -> None:
    assert machine.run("mce", **script) == [FAILED, RETURNED]
    assert why in machine.why()


def test_other_vcpus_of_an_intel_guest_get_the_machine_check_too(machine: Machine) -> None:
    said = machine.run("mce", **INTEL_GUEST, VCPUS="2")
    assert said.index(INTEL) < said.index(OTHERS)


@pytest.mark.parametrize("guest", [{}, LMCE_GUEST], ids=["amd", "intel-lmce"])
def test_other_vcpus_are_left_alone_where_the_machine_check_is_local(
    machine: Machine, guest: dict[str, str]
) -> None:
    assert not any("bank 1" in line for line in machine.run("mce", **guest, VCPUS="2"))


def test_a_vcpu_that_is_stopped_tries_again_and_is_let_go(machine: Machine) -> None:
    assert machine.run("stop", FAULTS="4") == [*[INTERRUPTED] * 4, RETURNED]
    last = deeds(machine.log.read_text())
    assert [(deed.did, deed.tries) for deed in last[2:]] == [
        *[("held", tries) for tries in (1, 2, 4)],
        ("released", 4),
    ]


def test_each_try_comes_after_a_longer_pause(machine: Machine) -> None:
    machine.run("stop", FAULTS="8")
    lines = [json.loads(line) for line in machine.log.read_text().splitlines()]
    at = [line["at"] for line in lines if line["did"] == "held"]  # tries 1, 2, 4 and 8
    assert at[1] - at[0] >= 0.010
    assert at[2] - at[1] >= 0.020 + 0.040
    assert at[3] - at[2] >= 0.080 + 3 * 0.160


def test_a_vcpu_that_meets_one_page_after_the_other_waits_as_long(machine: Machine) -> None:
    machine.run("stop", FAULTS="8", PAGES="4")
    lines = [json.loads(line) for line in machine.log.read_text().splitlines()]
    held = [line for line in lines if line["did"] == "held"]
    assert [line["tries"] for line in held] == [1] * 8
    assert len({line["gpa"] for line in held}) == 4
    assert held[-1]["at"] - held[0]["at"] >= 0.010 + 0.020 + 0.040 + 0.080 + 3 * 0.160


def test_a_capability_is_enabled_where_the_kernel_has_it(machine: Machine) -> None:
    assert machine.run("mce", CAPABILITY="1")[0] == "enabled 252"
    machine.log.unlink()
    assert "enabled 252" not in machine.run("mce")


def test_what_a_guest_can_repeat_does_not_fill_the_disk(machine: Machine) -> None:
    machine.run("mce", FAULTS="400")  # hexadecimal: 1024
    assert machine.did().count("injected") == 64 + 4  # and the 128th, 256th, 512th, 1024th


@pytest.mark.parametrize(
    "wrong", [{"HOSTFAULT_VMM_POLICY": "lazy"}, {"HOSTFAULT_VMM_LOG": "/no/such/place"}]
)
def test_a_library_that_cannot_do_its_work_does_not_let_qemu_start(
    machine: Machine, wrong: dict[str, str]
) -> None:
    said = machine.run("mce", **wrong)
    assert len(said) == 1
    assert said[0].startswith("vmm-policy: HOSTFAULT_VMM_")
