"""What each fault says of itself, and what it does, on files of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.access import ACCESSES
from hostfault.backing import BACK_END_CHILD, BACKINGS, GuestView
from hostfault.case.model import PAGE_SIZE, Page
from hostfault.fault import FAULTS, Scene, require
from hostfault.host.local import local_agent
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError, UsageError
from hostfault.remote.agent import Agent

FILE = "own/data"
LOAD, STORE = ACCESSES["load"], ACCESSES["store"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with local_agent(tmp_path / "run", tmp_path) as agent:
        agent.make_directory("own")
        yield agent


@pytest.fixture
def scene(agent: Agent) -> Scene:
    agent.make_file(FILE, [1, 2, None, 4], PAGE_SIZE)
    page = Page(FILE, 2 * PAGE_SIZE, "tmpfs")
    return Scene(agent, cast("Any", None), page, GuestView("/mnt/data", 0))


def test_no_name_is_part_of_another_so_that_k_picks_one() -> None:
    names = [fault.name for fault in FAULTS]
    assert not [(a, b) for a in names for b in names if a != b and a in b]


def test_a_name_that_is_unknown_is_told_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'fire'.* none, zero, middle"):
        FAULTS["fire"]


@pytest.mark.parametrize(
    ("backing", "fault"),
    [
        *(("ram", "guest"), ("ram-memfd", "zero"), ("ram-hugetlb", "full")),
        *(("ram", "hugetlb-empty"), ("ram-ext4", "uffd-dead"), ("ram-hugetlb", "memcg-oom")),
    ],
)
def test_a_fault_that_a_backing_cannot_have_says_what_is_missing(backing: str, fault: str) -> None:
    reason = require(FAULTS[fault], BACKINGS[backing])
    assert reason.startswith(f"{backing} cannot have the fault {fault}: needs ")


@pytest.mark.parametrize("backing", list(BACKINGS), ids=lambda backing: backing.name)
@pytest.mark.parametrize("fault", ["none", "punch", "hwpoison"])
def test_every_backing_can_have_these(backing: Any, fault: str) -> None:
    assert require(FAULTS[fault], backing) == ""


def test_a_control_leaves_the_page_to_be_seen() -> None:
    assert FAULTS["none"].expected(LOAD, was=1, stored=2) == 1
    assert FAULTS["none"].expected(STORE, was=1, stored=2) == 2


@pytest.mark.parametrize("fault", ["backend-dead", "backend-frozen"])
def test_a_back_end_that_ends_or_stands_still_takes_no_page_along(fault: str) -> None:
    assert FAULTS[fault].control
    assert not FAULTS[fault].takes_page
    assert FAULTS[fault].expected(LOAD, was=1, stored=2) == 1
    assert FAULTS[fault].expected(STORE, was=1, stored=2) == 2


@pytest.mark.parametrize(
    "fault",
    [
        *("zero", "middle", "guest", "full", "starved", "hwpoison", "hugetlb-empty", "eio"),
        *("uffd-poison", "uffd-dead", "memcg-oom", "swapin-error"),
    ],
)
def test_where_the_page_is_gone_there_is_no_byte_to_be_seen(fault: str) -> None:
    assert FAULTS[fault].expected(LOAD, was=1, stored=2) is None
    assert FAULTS[fault].expected(STORE, was=1, stored=2) is None


@pytest.mark.parametrize("fault", ["uffd-served", "uffd-gone", "hugetlb-limit"])
def test_a_page_that_somebody_may_yet_bring_is_full_of_zeroes(fault: str) -> None:
    assert FAULTS[fault].expected(LOAD, was=1, stored=2) == 0
    assert FAULTS[fault].expected(STORE, was=1, stored=2) == 2
    assert FAULTS[fault].starts_as_hole
    assert not FAULTS[fault].control, "the host may as well tell the task"


@pytest.mark.parametrize(("fault", "size"), [("zero", 0), ("middle", 2 * PAGE_SIZE)])
def test_a_truncation_takes_the_page_and_is_undone_by_growing(
    scene: Scene, fault: str, size: int
) -> None:
    FAULTS[fault].inject(scene)
    assert scene.agent.stat(FILE)["size"] == size
    assert scene.agent.byte(FILE, scene.page.offset) is None
    FAULTS[fault].undo(scene)
    assert scene.agent.byte(FILE, scene.page.offset) == 0


@pytest.mark.parametrize("fault", ["regrown", "punch"])
def test_a_page_that_is_new_is_full_of_zeroes(agent: Agent, fault: str) -> None:
    agent.make_file(FILE, [1, 2, 3, 4], PAGE_SIZE)
    scene = Scene(agent, cast("Any", None), Page(FILE, 2 * PAGE_SIZE, "tmpfs"), GuestView("/x", 0))
    assert agent.byte(FILE, 2 * PAGE_SIZE) == 3
    FAULTS[fault].inject(scene)
    assert agent.byte(FILE, 2 * PAGE_SIZE) == 0
    assert agent.stat(FILE)["size"] == 4 * PAGE_SIZE
    assert agent.byte(FILE, 3 * PAGE_SIZE) == (4 if fault == "punch" else 0)
    assert FAULTS[fault].expected(LOAD, was=3, stored=9) == 0
    assert FAULTS[fault].expected(STORE, was=3, stored=9) == 9


def test_half_a_page_is_a_page(agent: Agent) -> None:
    agent.make_file(FILE, [1, 2, 3, 4], PAGE_SIZE)
    scene = Scene(agent, cast("Any", None), Page(FILE, 2 * PAGE_SIZE, "tmpfs"), GuestView("/x", 0))
    FAULTS["partial"].inject(scene)
    assert agent.stat(FILE)["size"] == 2 * PAGE_SIZE + PAGE_SIZE // 2
    assert agent.byte(FILE, 2 * PAGE_SIZE) == 3
    assert FAULTS["partial"].expected(LOAD, was=3, stored=9) == 3


@pytest.mark.parametrize("fault", ["rename", "unlink", "replace"])
def test_a_file_that_loses_its_name_keeps_its_pages(scene: Scene, fault: str) -> None:
    own = scene.agent.stat(FILE)
    directory = Path(scene.agent.hello()["dir"]) / "own"
    FAULTS[fault].inject(scene)
    assert scene.agent.stat(FILE) == own
    assert scene.agent.byte(FILE, PAGE_SIZE) == 2
    left = {"rename": ["data.other"], "unlink": [], "replace": ["data"]}[fault]
    assert [path.name for path in directory.iterdir()] == left
    assert (directory / "data").exists() == (fault == "replace")


def test_a_name_that_was_not_changed_is_told(scene: Scene) -> None:
    scene.agent.change_name(FILE, "unlink")
    with pytest.raises(HostfaultError, match="No such file"):
        FAULTS["rename"].inject(scene)


@pytest.fixture
def served(agent: Agent) -> Scene:
    """A scene whose back-end sleeps for ever."""
    agent.spawn(BACK_END_CHILD, ["sleep", "1000"], {"PATH": os.defpath})
    return Scene(agent, cast("Any", None), Page(FILE, 0, "tmpfs"), GuestView("/x", 0))


def test_a_frozen_back_end_stands_still_until_the_fault_is_undone(served: Scene) -> None:
    FAULTS["backend-frozen"].inject(served)
    assert served.agent.ended(BACK_END_CHILD) is None
    FAULTS["backend-frozen"].undo(served)
    assert served.agent.kill(BACK_END_CHILD, signal.SIGTERM) == -signal.SIGTERM


def test_a_back_end_that_is_gone_cannot_be_frozen(served: Scene) -> None:
    served.agent.kill(BACK_END_CHILD)
    with pytest.raises(HostfaultError):
        FAULTS["backend-frozen"].inject(served)


def test_a_back_end_that_was_killed_on_purpose_is_no_trouble(served: Scene) -> None:
    served.agent.spawn("other", ["true"], {"PATH": os.defpath})
    FAULTS["backend-dead"].inject(served)
    assert BACK_END_CHILD not in served.agent.sample("other", ())["gone"]
    with pytest.raises(HostfaultError):
        served.agent.ended(BACK_END_CHILD)


def test_this_machine_is_never_hurt(scene: Scene) -> None:
    with pytest.raises(HostfaultError, match="not to be hurt"):
        FAULTS["hugetlb-empty"].inject(scene)
    with pytest.raises(HostfaultError, match="not to be hurt"):
        scene.agent.mount_huge_pages("own", 1)
    with pytest.raises(HostfaultError, match="not to be hurt"):
        scene.agent.mount_disk("own", 1 << 20)
    with pytest.raises(MissingCapabilityError, match="emulated-host: hwpoison costs a machine"):
        FAULTS["hwpoison"].inject(scene)
    with pytest.raises(MissingCapabilityError, match="emulated-host: soft-offline costs"):
        FAULTS["soft-offline"].inject(scene)
    for hurt in (scene.agent.poison, scene.agent.soft_offline):
        with pytest.raises(HostfaultError, match="not to be hurt"):
            hurt(FILE, 0)
    for name in ("uffd-poison", "uffd-dead", "memcg-oom", "hugetlb-limit", "swapin-error"):
        with pytest.raises(MissingCapabilityError, match=r"emulated-host: .*use --host emulated"):
            FAULTS[name].inject(scene)


def test_a_disk_that_is_not_ours_is_never_broken(scene: Scene) -> None:
    with pytest.raises(HostfaultError, match="on no disk of the agent's own"):
        FAULTS["eio"].inject(scene)


def test_a_file_system_that_is_not_ours_is_never_filled(scene: Scene) -> None:
    with pytest.raises(MissingCapabilityError, match=r"tmpfs: .* be root"):
        FAULTS["full"].inject(scene)
    with pytest.raises(HostfaultError, match="on no file system of the agent's own"):
        scene.agent.fill(scene.page.path)


def test_a_full_file_system_has_no_page_for_a_hole_until_room_is_made(agent: Agent) -> None:
    if not agent.mount("own", 1 << 20):
        pytest.skip("only root may mount a tmpfs")
    agent.make_file(FILE, [1, None], PAGE_SIZE)
    assert agent.file_system(FILE) == "tmpfs"
    scene = Scene(agent, cast("Any", None), Page(FILE, PAGE_SIZE, "tmpfs"), GuestView("/x", 0))
    FAULTS["full"].inject(scene)
    with pytest.raises(HostfaultError, match="No space left"):
        agent.write_pages(FILE, PAGE_SIZE, [7], PAGE_SIZE)
    assert agent.byte(FILE, PAGE_SIZE) == 0, "reading a hole takes no page"
    FAULTS["full"].undo(scene)
    agent.write_pages(FILE, PAGE_SIZE, [7], PAGE_SIZE)
    assert agent.byte(FILE, PAGE_SIZE) == 7
