"""Boot, save, fork, try again and boot anew: the flow, with machines that only pretend.

What boots, loads and answers is scripted; the cache, the folders and the flow are real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.case.model import Ended, Event, HostImage, Kernel, Qemu, Scenario
from hostfault.guest.policy import VmmPolicy
from hostfault.host import emulated
from hostfault.host.emulated import (
    Configuration,
    EmulatedHost,
    check_ended,
    told_if_the_guest_ended,
)
from hostfault.host.outer_qemu import MachineSpec
from hostfault.host.testbed import ATTEMPTS, Added, Testbed
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import DeadlineError, HostfaultError, SetupError

SCENARIO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)


@dataclass
class Script:
    """What becomes of each boot and each load, in order; None works."""

    boots: list[HostfaultError | None] = field(default_factory=list)
    loads: list[HostfaultError | None] = field(default_factory=list)
    booted: int = 0
    loaded: int = 0


class Scripted(Configuration):
    """A configuration whose machines follow a script."""

    script: Script

    def _boot_once(self, entry: Path, folder: Path, failed: Path) -> None:
        self.script.booted += 1
        trouble = self.script.boots.pop(0) if self.script.boots else None
        if trouble:
            failed.mkdir()
            raise trouble
        (entry / "notes.json").write_text(json.dumps({"boot": self.script.booted}))

    def _fork(self, stack: ExitStack, entry: Path, folder: Path, *, fresh: bool) -> Testbed:
        self.script.loaded += 1
        trouble = self.script.loads.pop(0) if self.script.loads else None
        if trouble:
            raise trouble
        nothing = cast("Any", None)
        return Testbed(nothing, nothing, nothing, nothing, cached=not fresh)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


def machine_spec(tmp_path: Path, accelerator: str = "tcg") -> MachineSpec:
    for name in ("bzImage", "initramfs"):
        (tmp_path / name).write_text(name)
    kernel = Kernel("7.3.4", "7.3.4+deb13", tmp_path / "bzImage", tmp_path, packaged=True)
    image = HostImage("key", tmp_path / "disk", tmp_path / "root")
    qemu = Qemu("image", "11.1.3", ("qemu",))
    return MachineSpec(qemu, image, kernel, tmp_path / "initramfs", accelerator)


def fork(
    script: Script,
    cache: Cache,
    tmp_path: Path,
    added: Added | None = None,
    accelerator: str = "tcg",
) -> Testbed:
    spec = machine_spec(tmp_path, accelerator)
    host = EmulatedHost(lambda _: spec, cast("Any", None), cache, added or Added())
    configuration = Scripted(host, SCENARIO)
    configuration.script = script
    folder = tmp_path / f"folder-{script.loaded}"
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        return configuration.fork_or_boot_anew(stack, folder)


def test_the_first_case_boots_and_the_second_forks(cache: Cache, tmp_path: Path) -> None:
    script = Script()
    assert not fork(script, cache, tmp_path).cached
    assert fork(script, cache, tmp_path).cached
    assert (script.booted, script.loaded) == (1, 2)


def test_a_guest_that_dies_at_its_start_is_booted_again(cache: Cache, tmp_path: Path) -> None:
    script = Script(boots=[HostfaultError("the guest died"), None])
    assert not fork(script, cache, tmp_path).cached
    assert script.booted == 2
    assert (tmp_path / "folder-0" / "boot-1").is_dir(), "the logs of the failed attempt stay"


def test_a_guest_that_always_dies_is_an_error_that_says_where_its_logs_are(
    cache: Cache, tmp_path: Path
) -> None:
    script = Script(boots=[HostfaultError("the guest died")] * ATTEMPTS)
    with pytest.raises(SetupError, match=r"the guest died\nlogs: .*folder-0"):
        fork(script, cache, tmp_path)
    assert script.booted == ATTEMPTS


@pytest.mark.parametrize(
    "trouble",
    [
        SetupError("the emulated host does not come up"),
        DeadlineError("the guest to boot", 120.0, "nothing"),
        HostfaultError("write: No space left on device"),
    ],
    ids=["no boot", "a hang", "a full disk"],
)
def test_what_would_be_the_same_again_is_not_tried_again(
    cache: Cache, tmp_path: Path, trouble: HostfaultError
) -> None:
    script = Script(boots=[trouble])
    with pytest.raises(SetupError):
        fork(script, cache, tmp_path)
    assert script.booted == 1


def test_a_snapshot_that_does_not_load_is_thrown_away_and_booted_anew(
    cache: Cache, tmp_path: Path
) -> None:
    script = Script(loads=[None, HostfaultError("migration failed"), None])
    fork(script, cache, tmp_path)
    assert not fork(script, cache, tmp_path).cached
    assert (script.booted, script.loaded) == (2, 3)


def test_a_snapshot_that_never_loads_is_an_error(cache: Cache, tmp_path: Path) -> None:
    script = Script(loads=[HostfaultError("migration failed")] * ATTEMPTS)
    with pytest.raises(HostfaultError, match="migration failed"):
        fork(script, cache, tmp_path)
    assert script.loaded == ATTEMPTS


def test_a_host_that_runs_the_wrong_kernel_is_not_booted_again(
    cache: Cache, tmp_path: Path
) -> None:
    script = Script(loads=[SetupError("the host runs another kernel")])
    with pytest.raises(SetupError, match="another kernel"):
        fork(script, cache, tmp_path)
    assert (script.booted, script.loaded) == (1, 1)


def test_an_option_that_a_person_adds_makes_another_snapshot(cache: Cache, tmp_path: Path) -> None:
    script = Script()
    more = (
        Added(qemu_options=("-s",)),
        Added(guest_append=("debug",)),
        Added(policy=VmmPolicy("mce", "/run/policy.so")),
        Added(policy=VmmPolicy("stop", "/run/policy.so")),
        Added(virtiofsd=("/run/hostfault/virtiofsd",)),
        Added(virtiofsd=("/run/hostfault/virtiofsd", "--cache=never")),
    )
    for added in (Added(), *more, Added()):
        fork(script, cache, tmp_path, added)
    assert (script.booted, script.loaded) == (7, 8)


def test_a_host_that_kvm_runs_has_a_snapshot_of_its_own(cache: Cache, tmp_path: Path) -> None:
    """In it the back-end is notified; where TCG runs the host it polls."""
    script = Script()
    for accelerator in ("tcg", "kvm", "tcg", "kvm"):
        fork(script, cache, tmp_path, accelerator=accelerator)
    assert (script.booted, script.loaded) == (2, 4)


class Reset:
    """A machine that has reset itself; that can be seen a moment after its lines broke."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def ended(self) -> Ended | None:
        self.looks -= 1
        return Ended(0, None, "READY") if self.looks < 0 else None

    def events(self) -> tuple[Event, ...]:
        return (Event("SHUTDOWN", 1.0, {"guest": True, "reason": "guest-reset"}, host=True),)


def test_a_line_that_broke_because_the_host_reset_itself_is_told_as_that() -> None:
    words = r"host ended while its guest booted \(QMP SHUTDOWN: guest-reset\)\nREADY"
    with pytest.raises(HostfaultError, match=words):
        check_ended(cast("Any", Reset(looks=2)))


def test_a_line_that_broke_in_a_host_that_lives_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(emulated, "DYING", 0.1)
    check_ended(cast("Any", Reset(looks=1000)))


def test_what_failed_because_the_guest_reset_itself_is_told_as_that() -> None:
    reset = Event("SHUTDOWN", 1.0, {"guest": True, "reason": "guest-reset"})
    words = r"^the guest ended while it booted \(QMP SHUTDOWN: guest-reset\)\nthe probe ended"
    with pytest.raises(HostfaultError, match=words), told_if_the_guest_ended(lambda: (reset,)):
        raise HostfaultError("the probe ended")


def test_what_failed_with_a_guest_that_lives_is_told_as_it_is() -> None:
    resume = Event("RESUME", 1.0)
    with (
        pytest.raises(DeadlineError, match="the probe to start"),
        told_if_the_guest_ended(lambda: (resume,)),
    ):
        raise DeadlineError("the probe to start", 20.0, "nothing")
