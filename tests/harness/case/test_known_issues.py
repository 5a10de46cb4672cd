"""Which known issue covers what, and above all what none may cover."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hostfault.case.known_issues import load, match
from hostfault.case.model import Kernel, Scenario, VerdictKind
from hostfault.fault import FAULTS
from hostfault.kernel import catalog

ISSUES = load()
TRUNCATED = Scenario("virtiofs-dax", "zero", "load", async_pf=True)


def kernel(release: str, *, packaged: bool = True) -> Kernel:
    return Kernel("name", release, Path("bzImage"), Path("modules"), packaged)


@pytest.mark.parametrize("entry", catalog.load().values(), ids=lambda entry: entry.name)
def test_every_catalogued_kernel_has_the_async_fault_issue(entry: catalog.CatalogEntry) -> None:
    issue = match(ISSUES, kernel(entry.release), TRUNCATED)
    assert issue is not None
    assert issue.id == "kvm-apf-error"
    assert issue.verdict is VerdictKind.SPIN


def test_the_reason_has_the_id_and_where_to_read_about_it() -> None:
    issue = match(ISSUES, kernel("6.12.94+deb13-cloud-amd64"), TRUNCATED)
    assert issue is not None
    assert issue.reason.startswith("known issue kvm-apf-error: KVM ignores")
    assert "https://lore.kernel.org/kvm/" in issue.reason


def test_a_kernel_that_somebody_built_has_no_known_issue() -> None:
    assert match(ISSUES, kernel("7.3.4+deb13-cloud-amd64", packaged=False), TRUNCATED) is None


def test_a_local_host_has_no_known_issue() -> None:
    assert match(ISSUES, None, TRUNCATED) is None


@pytest.mark.parametrize("release", ["5.19.0-1", "6.0.9", "7.3.5+deb13", "7.4.0", "8.0.1"])
def test_a_release_outside_of_the_range_has_no_known_issue(release: str) -> None:
    assert match(ISSUES, kernel(release), TRUNCATED) is None


@pytest.mark.parametrize("fault", ["none", "guest"])
def test_a_control_case_has_no_known_issue(fault: str) -> None:
    control = dataclasses.replace(TRUNCATED, fault=fault)
    assert match(ISSUES, kernel("7.3.4+deb13"), control) is None


def test_a_bound_of_two_numbers_covers_the_whole_series(tmp_path: Path) -> None:
    table = tmp_path / "issues.toml"
    table.write_text(
        '[[issue]]\nid = "x"\nsummary = "s"\nreference = "r"\nverdict = "stale"\n'
        'faults = ["zero"]\nkernels = { first = "6.2.3", last = "6.4" }\n'
    )
    issues = load(table)
    covered = ["6.2.3", "6.3.1", "6.4.0", "6.4.99"]
    assert [r for r in (*covered, "6.2.2", "6.5.0") if match(issues, kernel(r), TRUNCATED)] == (
        covered
    )


@pytest.mark.parametrize(
    "wrong",
    [
        'verdict = "sleepy"',
        'kernels = { first = "old", last = "6.4" }',
        'vmm_policies = ["lazy"]',
    ],
    ids=["verdict", "version", "policy"],
)
def test_a_table_with_an_unknown_word_is_refused(tmp_path: Path, wrong: str) -> None:
    fields = {
        "verdict": 'verdict = "spin"',
        "faults": 'faults = ["zero"]',
        "kernels": 'kernels = { first = "6.1", last = "6.4" }',
        "id": 'id = "x"\nsummary = "s"\nreference = "r"',
    }
    fields[wrong.split()[0]] = wrong
    table = tmp_path / "issues.toml"
    table.write_text("[[issue]]\n" + "\n".join(fields.values()) + "\n")
    with pytest.raises(ValueError, match=r"sleepy|old|lazy"):
        load(table)


@pytest.mark.parametrize("access", ["read", "write"])
def test_a_guest_that_panics_on_a_machine_check_in_a_copy_is_known(access: str) -> None:
    host, guest = kernel("7.3.4+deb13", packaged=False), kernel("7.3.4+deb13")
    copied = dataclasses.replace(TRUNCATED, access=access)
    issue = match(ISSUES, host, copied, guest=guest, vmm_policy="mce")
    assert issue is not None
    assert (issue.id, issue.verdict) == ("guest-dax-copy", VerdictKind.GUEST_DEATH)
    for policy in ("stock", "stop"):
        assert match(ISSUES, host, copied, guest=guest, vmm_policy=policy) is None
    assert match(ISSUES, host, copied, guest=host, vmm_policy="mce") is None
    assert match(ISSUES, host, TRUNCATED, guest=guest, vmm_policy="mce") is None


def test_what_the_host_has_comes_before_what_the_guest_has() -> None:
    packaged = kernel("7.3.4+deb13")
    read = dataclasses.replace(TRUNCATED, access="read")
    issue = match(ISSUES, packaged, read, guest=packaged, vmm_policy="mce")
    assert issue is not None
    assert issue.id == "kvm-apf-error"


def test_the_faults_of_the_list_are_faults_that_there_are() -> None:
    named = {fault for issue in load() for fault in issue.faults}
    assert named <= {fault.name for fault in FAULTS}


@pytest.mark.parametrize("access", ["dma", "vhost"])
def test_an_access_that_is_none_of_kvms_is_left_out_of_its_issue(access: str) -> None:
    by_device = dataclasses.replace(TRUNCATED, access=access)
    issue = match(ISSUES, kernel("7.3.4+deb13"), by_device)
    assert issue is None or issue.id != "kvm-apf-error"
