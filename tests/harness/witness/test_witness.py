"""The command around the witness: its kernels, and the proof of which one ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.bisect.fixes import FIXES
from hostfault.case.model import Kernel
from hostfault.kernel.catalog import newest
from hostfault.plumbing.errors import SetupError
from hostfault.witness.__main__ import STOCK, kernels
from hostfault.witness.machine import alarms, prove_kernel

KERNEL = Kernel("k", "7.3.4+x", Path("image"), Path("modules"), packaged=False, build_id="ab" * 20)
NOTES = " 04 00 00 00 14 00 00 00\n 03 00 00 00 47 4e 55 00\n" + " ab" * 20 + "\n"


def test_without_a_name_it_is_the_newest_kernel() -> None:
    assert kernels([], everything=False) == (newest(),)


def test_names_are_taken_once_each_in_their_order() -> None:
    assert kernels(["6.12", "6.1", "6.12"], everything=False) == ("6.12", "6.1")


def test_all_has_every_stock_kernel_and_every_fix_of_two() -> None:
    found = kernels([], everything=True)
    assert found[: len(STOCK)] == STOCK
    for fix in FIXES:
        assert {f"7.3.4+{fix}", f"6.12+{fix}"} <= set(found)


def test_a_host_that_runs_the_kernel_is_believed() -> None:
    prove_kernel(f"7.3.4+x\n{NOTES}", KERNEL)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (f"7.3.4+y\n{NOTES}", "its release is 7.3.4\\+y"),
        (f"7.3.4+x\n{NOTES.replace('ab', 'cd')}", "its build id of kvm.ko is cdcd"),
        ("7.3.4+x\n", "its build id of kvm.ko is "),
    ],
)
def test_a_host_with_another_kernel_or_another_kvm_is_refused(words: str, what: str) -> None:
    with pytest.raises(SetupError, match=what):
        prove_kernel(words, KERNEL)


def test_a_kernel_that_says_it_is_broken_is_heard() -> None:
    log = "[1.0] kvm: fine\n[2.0] WARNING: CPU: 0 PID: 1 at virt/kvm/async_pf.c\n[3.0] done\n"
    assert alarms(log) == ("[2.0] WARNING: CPU: 0 PID: 1 at virt/kvm/async_pf.c",)
