"""QEMU's own policies, for real: its series is built, and runs a guest on a KVM that tells it."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from hostfault.case.model import RecoveryKind, Scenario, VerdictKind
from hostfault.case.settings import Settings
from hostfault.image import qemu
from hostfault.kernel.catalog import newest
from hostfault.kernel.fetch import fetch_source
from hostfault.kernel.series import touched
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.run.lab import Lab
from hostfault.told import mails

FULL, CUT = (Scenario("ram", fault, "store", async_pf=True) for fault in ("full", "zero"))
STORED = 0x5A


@pytest.mark.nightly
@pytest.mark.usefixtures("build_root_allowed")
@pytest.mark.timeout(3600)  # QEMU and KVM are compiled the first time
def test_a_full_file_system_stops_the_vm_until_there_is_room_and_a_cut_file_is_told(
    tmp_path: Path,
) -> None:
    settings = Settings(
        host="emulated",
        host_kernel=f"{newest()}+tell-user-space",
        qemu="10.0+on-unbacked",
        vmm_policy="qemu-auto",
    )
    with Lab(settings) as lab:
        stopped = lab.run("full", FULL, tmp_path / "full")
        told = lab.run("cut", CUT, tmp_path / "cut")
    stopped.must_be(VerdictKind.VM_EXIT)
    (event,) = [each for each in stopped.observation.events if each.name == "MEMORY_UNBACKED"]
    assert (event.data["action"], event.data["access"]) == ("stop", "write")
    assert event.data["memory-backend"] == "/objects/part"
    recovery = stopped.observation.recovery
    assert recovery is not None
    assert recovery.kind is RecoveryKind.GOES_ON_AFTER_CONT
    assert recovery.stored_byte == STORED
    told.must_be_signal(signal.SIGBUS)
    outcome = told.observation.probe.outcome
    assert outcome is not None
    assert outcome.rip == told.observation.probe.rip
    assert told.observation.guest_answers is True
    assert told.observation.qemu_build_id == told.facts.qemu.build_id != ""


@pytest.mark.nightly
@pytest.mark.timeout(900)  # the first time the source is fetched
def test_git_am_takes_qemus_mails_on_the_packaged_source(tmp_path: Path) -> None:
    cache = default_cache()
    try:
        written = mails.post("on-unbacked", tmp_path / "mails", cache)
        tree = packaged_source(cache, tmp_path / "tree")
    finally:
        cache.close()
    who = ("-c", "user.name=A U Thor", "-c", "user.email=author@example.com")
    names = sorted(touched(written[1:]))
    for words in (["init", "-q"], ["add", *names], ["commit", "-qm", "base"]):
        subprocess.run(["git", *who, *words], cwd=tree, check=True, timeout=60)
    line = ["git", *who, "am", "-q", *map(str, written[1:])]
    subprocess.run(line, cwd=tree, check=True, timeout=60)
    assert "'mce', 'auto'" in (tree / "qapi/common.json").read_text()


def packaged_source(cache: Cache, tree: Path) -> Path:
    tree.mkdir()
    qemu.lay_out(fetch_source(cache, qemu.suite_of(qemu.newest()), "qemu"), tree)
    return tree
