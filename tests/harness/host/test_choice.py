"""Which host a run gets, and why."""

from __future__ import annotations

import pytest

from hostfault.case.settings import Settings
from hostfault.host.choice import Choice, MachineFacts, choose, forced
from hostfault.plumbing.errors import MissingCapabilityError, UsageError

GOOD = MachineFacts("", "")
NO_KVM = MachineFacts("guest did not boot: KVM internal error", "")
NO_TRACING = MachineFacts("", "only root may: use sudo for the local host")


@pytest.mark.parametrize(
    ("settings", "machine", "choice"),
    [
        (Settings(), GOOD, Choice("local", "a guest boots on /dev/kvm")),
        (
            Settings(),
            NO_KVM,
            Choice("emulated", "no usable /dev/kvm: guest did not boot: KVM internal error"),
        ),
        (Settings(), NO_TRACING, Choice("emulated", "only root may: use sudo for the local host")),
        (
            Settings(host="local"),  # with fewer proofs, as nobody is put there unasked
            NO_TRACING,
            Choice(
                "local", "asked for with --host local; only root may: use sudo for the local host"
            ),
        ),
        (Settings(require=("kvm",)), GOOD, Choice("local", "a guest boots on /dev/kvm")),
        (
            Settings(require=("all",)),  # for want of kvm no test is skipped, so it is not meant
            NO_KVM,
            Choice("emulated", "no usable /dev/kvm: guest did not boot: KVM internal error"),
        ),
        (
            Settings(host="emulated"),
            GOOD,
            Choice("emulated", "asked for with --host emulated"),
        ),
        (
            Settings(host_kernel="6.1"),
            GOOD,
            Choice("emulated", "--host-kernel boots in one"),
        ),
        (
            Settings(host_append=("npt=0",)),
            GOOD,
            Choice("emulated", "--host-append boots in one"),
        ),
        (
            Settings(kvm_options=("npt=0",)),
            GOOD,
            Choice("emulated", "--kvm-option boots in one"),
        ),
        (Settings(cpu="intel"), GOOD, Choice("emulated", "--cpu intel boots in one")),
        (
            Settings(host="emulated", cpu="intel"),
            GOOD,
            Choice("emulated", "asked for with --host emulated --cpu intel"),
        ),
        (
            Settings(host="ssh://lab"),
            NO_KVM,  # which is of this machine, and nobody asks
            Choice("ssh", "asked for with --host ssh://lab"),
        ),
        (Settings(qemu="system"), GOOD, Choice("local", "a guest boots on /dev/kvm")),
    ],
)
def test_a_run_gets_the_host_that_fits_and_says_why(
    settings: Settings, machine: MachineFacts, choice: Choice
) -> None:
    assert choose(settings, machine) == choice


@pytest.mark.parametrize(
    ("settings", "machine", "capability"),
    [
        (Settings(host="local", require=("tracing",)), NO_TRACING, "tracing"),
        (Settings(require=("kvm",)), NO_KVM, "kvm"),
        (Settings(require=("kvm",)), NO_TRACING, "kvm"),
    ],
)
def test_what_was_demanded_and_is_missing_is_a_missing_capability(
    settings: Settings, machine: MachineFacts, capability: str
) -> None:
    with pytest.raises(MissingCapabilityError) as caught:
        choose(settings, machine)
    assert caught.value.capability == capability


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(host="local", host_kernel="6.1"), "--host-kernel needs an emulated host"),
        (Settings(host="local", host_append=("x",)), "--host-append needs an emulated host"),
        (Settings(host="local", kvm_options=("x=1",)), "--kvm-option needs an emulated host"),
        (Settings(host="local", cpu="intel"), "--cpu intel needs an emulated host"),
        (Settings(host="ssh://lab", cpu="intel"), "Leave out --host ssh://lab, or --cpu intel"),
        (Settings(require=("kvm",), cpu="intel"), "leave out --cpu intel, or --require kvm"),
        (Settings(host="ssh://lab", kvm_options=("x=1",)), "Leave out --host ssh://lab"),
        (Settings(require=("kvm",), host="emulated"), "this machine's own kernel"),
        (Settings(require=("kvm",), host_kernel="6.1"), "this machine's own kernel"),
        (Settings(host="emulated", qemu="system"), "--qemu needs a local host"),
        (Settings(host="ssh://lab", host_kernel="6.1"), "Leave out --host ssh://lab"),
        (Settings(host="ssh://lab", qemu="system"), "leave --qemu out"),
        (Settings(host="ssh://lab", virtiofsd=("x",)), "--virtiofsd is not brought"),
        (Settings(host="ssh://lab", qemu="10.0+on-unbacked"), "leave --qemu out"),
        (Settings(vmm_policy="qemu-stop"), "no released QEMU has it"),
        (Settings(host="local", host_console="file"), "--host-console is for a host over SSH"),
    ],
)
def test_options_that_contradict_each_other_are_told_before_anything_runs(
    settings: Settings, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        forced(settings)


def test_local_without_kvm_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--host emulated"):
        choose(Settings(host="local"), NO_KVM)


def test_another_qemu_without_kvm_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--qemu"):
        choose(Settings(qemu="system"), NO_KVM)


@pytest.mark.parametrize("qemu", ["10.0+on-unbacked", "tree:/src/qemu"])
def test_a_qemu_that_is_built_runs_guests_in_an_emulated_host_too(qemu: str) -> None:
    settings = Settings(host="emulated", qemu=qemu, vmm_policy="qemu-auto")
    assert choose(settings, NO_KVM).kind == "emulated"
