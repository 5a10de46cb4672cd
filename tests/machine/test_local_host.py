"""The local host, for real: an emulated host has a /dev/kvm that works, so pytest runs there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from project_host import HERE, LEFT, host_with_project, pytest_in

from hostfault.case.model import VerdictKind, observation_from_json
from hostfault.case.verdict import final_verdict
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.shell import Answer
from hostfault.remote.ssh import SshShell

JOB = "/tmp/job"  # an ordinary user's copy of what the host was given
FOREIGN = "foreign-virtiofsd"  # below HERE: a back-end in place of ours
USER, KVM = 1000, 993  # the user, and a group that may use /dev/kvm
PREPARE = (
    f"mkdir -m 755 {JOB} {JOB}/home && cp -a {HERE}/. {JOB} && chown -R {USER}:{USER} {JOB} && "
    f"chgrp {KVM} /dev/kvm && chmod 660 /dev/kvm"
)
MAY_COUNT = (  # what an administrator does who lets the group count
    "echo 1 >/proc/sys/kernel/perf_event_paranoid && "
    f"mount -o remount,gid={KVM},mode=750 /sys/kernel/tracing"
)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, foreign_virtiofsd: Path) -> Iterator[SshShell]:
    more = {FOREIGN: foreign_virtiofsd}
    with host_with_project(tmp_path_factory.mktemp("host"), more) as shell:
        shell.check(PREPARE, Deadline(60.0, "an ordinary user's files"))
        yield shell


def as_root(host: SshShell, tests: str) -> Answer:
    watched = shlex.quote(f"{pytest_in(HERE)} {tests}")
    return run(host, f"python3 {HERE}/project/tests/machine/witness_rights.py sh -c {watched}")


def as_user(host: SshShell, tests: str, groups: str = f"--groups {KVM}") -> Answer:
    user = f"env HOME={JOB}/home setpriv --reuid {USER} --regid {USER} {groups}"
    return run(host, f"{user} sh -c {shlex.quote(f'{pytest_in(JOB)} {tests}')}")


def run(host: SshShell, command: str) -> Answer:
    answer = host.run(command, Deadline(400.0, "pytest inside the emulated host"))
    print(answer.text)
    left = host.run(LEFT, Deadline(10.0, "ls"))
    assert left.text.strip() == "", "something of the run is left"
    return answer


def rights(answer: Answer, of: str) -> dict[str, str]:
    found = re.search(r"^RIGHTS (.*)$", answer.text, re.MULTILINE)
    assert found is not None
    told: dict[str, str] = json.loads(found[1])[of]
    return told


@pytest.mark.timeout(600)
def test_a_case_as_root_proves_the_spin_and_the_guest_gets_at_no_right_of_root_s(
    host: SshShell,
) -> None:
    answer = as_root(host, "-k zero-load-apf tests/dax")
    assert re.search(r"host: local.*\(a guest boots on /dev/kvm\)", answer.text)
    assert re.search(r"virtiofs-dax +zero +load +async-pf +SPIN", answer.text)
    # What runs on a local host is not known to be a packaged kernel, so no known issue applies.
    assert "1 failed" in answer.text
    assert answer.code == pytest.ExitCode.TESTS_FAILED
    qemu, back_end = rights(answer, "qemu"), rights(answer, "back-end")
    for each in (qemu, back_end):
        assert all(int(user) >= 61184 for user in each["Uid"].split() + each["Gid"].split())
        assert int(each["CapEff"], 16) == int(each["CapPrm"], 16) == 0
        assert each["NoNewPrivs"] == "1"
    assert qemu["Seccomp"] == "2"  # a filter: seccomp(2)
    assert qemu["Groups"].split() == qemu["Gid"].split()[:1]
    assert back_end["Groups"] == ""
    assert qemu["Uid"] != back_end["Uid"]


@pytest.mark.timeout(600)
def test_a_user_of_the_group_kvm_proves_the_spin_without_tracepoints(
    host: SshShell, tmp_path: Path
) -> None:
    answer = as_user(host, "-k zero-load-noapf tests/dax")
    assert re.search(r"host: local.*tracepoints cannot be counted", answer.text)
    assert re.search(r"virtiofs-dax +zero +load +no-async-pf +SPIN", answer.text)
    assert "no tracepoint is counted" in answer.text
    assert answer.code == pytest.ExitCode.TESTS_FAILED
    recorded = host.check(
        f"cat {JOB}/project/.hostfault/runs/last/*/observation.json", Deadline(10.0, "cat")
    )
    (tmp_path / "observation.json").write_text(recorded)
    observation = observation_from_json(json.loads(recorded))
    assert observation.counted_by == ""
    assert final_verdict(observation).kind is VerdictKind.SPIN


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_that_user_has_a_verdict_of_every_case_of_dax(host: SshShell) -> None:
    answer = as_user(host, "tests/dax")
    assert len(re.findall(r"virtiofs-dax +(?:zero|middle) .* SPIN", answer.text)) == 12
    assert len(re.findall(r"virtiofs-dax +none .* OK", answer.text)) == 4
    assert len(re.findall(r"virtiofs-dax +guest .* TASK-ERROR", answer.text)) == 2
    assert "12 failed, 6 passed" in answer.text


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_back_end_in_place_of_ours_serves_a_guest(host: SshShell) -> None:
    program = f"{HERE}/{FOREIGN}"
    tests = f"-k 'zero-store-apf or none-write-apf' --virtiofsd {program} tests/dax"
    answer = run(host, f"{pytest_in(HERE)} {tests}")
    assert re.search(rf"host: local.*, back-end {re.escape(program)} ", answer.text)
    assert re.search(r"virtiofs-dax +zero +store +async-pf +SPIN", answer.text)
    assert re.search(r"virtiofs-dax +none +write +async-pf +OK", answer.text)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_user_who_may_count_has_the_proof_by_frame(host: SshShell) -> None:
    host.check(MAY_COUNT, Deadline(10.0, "rights to count"))
    answer = as_user(host, "-k 'zero-load-apf or zero-write-noapf' tests/dax")
    assert re.search(r"host: local.*\(a guest boots on /dev/kvm\)", answer.text)
    assert len(re.findall(r"virtiofs-dax +zero .* SPIN", answer.text)) == 2
    assert "counted by perf_event_open" in answer.text
    assert len(re.findall(r"[\d,]+ failed attempts to back gfn", answer.text)) >= 2


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_what_takes_root_is_a_skip_and_a_user_outside_the_group_kvm_one_clear_error(
    host: SshShell,
) -> None:
    answer = as_user(host, "-k ram-full-load-apf tests/ram")
    assert answer.code == pytest.ExitCode.OK
    assert re.search(r"SKIP\s+Skipped: tmpfs: the agent may not mount a tmpfs", answer.text)
    answer = as_user(host, "-k zero-load-apf tests/dax", groups="--clear-groups")
    assert answer.code == pytest.ExitCode.USAGE_ERROR
    assert answer.text.count("forbidden to this user: join the group kvm") == 1
