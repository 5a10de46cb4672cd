"""Backings in which guest memory is a range of one host file: where it is, and its proof."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from hostfault.agent.filesystems import write_at
from hostfault.backing import BACKINGS, GUEST_MEMORY, Backing, Python, devdax
from hostfault.backing.ivshmem import SLOT, find_bar
from hostfault.backing.ram import START
from hostfault.case.model import PAGE_SIZE, Page
from hostfault.host.local import local_agent
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError
from hostfault.remote.agent import Agent

IN_RAM = [each for each in BACKINGS if each.name.startswith("ram")]
PCI = """\
  Bus  0, device   2, function 0:
    Ethernet controller: PCI device 1af4:1000
      BAR2: 64 bit prefetchable memory at 0xfd000000 [0xfd003fff].
      id ""
  Bus  0, device  16, function 0:
    RAM controller: PCI device 1af4:1110
      PCI subsystem 1af4:1100
      BAR0: 32 bit memory at 0xfebf1000 [0xfebf10ff].
      BAR2: 64 bit prefetchable memory at 0xfe000000 [0xfe1fffff].
      id ""
"""


class Monitor:
    """A QEMU that answers what it was told to, and the agent that sees one mapping of it."""

    def __init__(self, mapped: tuple[str, int] | None, said: str = "") -> None:
        self.mapped, self.said = mapped, said

    def monitor(self, line: str) -> str:
        if not line.startswith("gpa2hva"):
            return self.said
        address = line.split()[1]
        return f"Host virtual address for {address} (part) is 0x7f0000008000\r\n"

    def mapped_at(self, name: str, address: int) -> tuple[str, int] | None:
        assert address == 0x7F0000008000
        return self.mapped


def frame(backing: Backing, page: Page, mapped: tuple[str, int] | None, said: str = "") -> int:
    stand_in = cast("Any", Monitor(mapped, said))
    return backing.frame(stand_in, stand_in, page, writes=False)


@pytest.mark.parametrize("backing", IN_RAM, ids=lambda each: each.name)
def test_a_page_of_plain_memory_has_the_frame_of_its_place_in_the_file(backing: Any) -> None:
    store = backing.store
    page = Page("ram/memory", 8 * store.page_size, "tmpfs", store.page_size)
    found = frame(backing, page, (store.mapped_as, page.offset))
    assert found == (START + 8 * store.page_size) // PAGE_SIZE


@pytest.mark.parametrize("mapped", [None, ("ram/memory", 0), ("ram/other", 0x8000)])
def test_a_page_that_qemu_has_elsewhere_has_no_frame(mapped: tuple[str, int] | None) -> None:
    with pytest.raises(HostfaultError, match="is backed by"):
        frame(BACKINGS["ram"], Page("ram/memory", 0x8000, "tmpfs"), mapped)


def test_a_page_of_a_bar_has_the_frame_that_qemu_gives_it() -> None:
    page = Page("ram/memory", 0x8000, "tmpfs")
    assert frame(BACKINGS["ivshmem"], page, ("ram/memory", 0x8000), PCI) == 0xFE008


def test_a_page_of_a_pmem_has_the_frame_that_qemu_gives_it() -> None:
    page = Page("ram/memory", 0x28000, "tmpfs")
    said = 'Memory device [virtio-pmem]: ""\r\n  memaddr: 0x100000000\r\n  size: 33554432\r\n'
    assert frame(BACKINGS["virtio-pmem"], page, ("ram/memory", 0x28000), said) == 0x100028
    with pytest.raises(HostfaultError, match="does not say where its virtio-pmem is"):
        frame(BACKINGS["virtio-pmem"], page, ("ram/memory", 0x28000), "")


class GuestWith:
    """A guest that answers each command with the first text of those that it contains."""

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.answers = answers
        self.ran: list[str] = []

    def check(self, command: str, _deadline: object) -> str:
        self.ran.append(command)
        return next((said for part, said in self.answers.items() if part in command), "")


class Taking:
    """An agent that is given the file."""

    def adopt(self, path: str) -> None:
        self.path = path


def mount(name: str, guest: GuestWith) -> Taking:
    agent = Taking()
    BACKINGS[name].mount(cast("Any", agent), cast("Any", guest), Deadline(1.0, "nothing"))
    return agent


@pytest.mark.parametrize(
    ("name", "mounted", "good"),
    [
        ("virtio-pmem", "/dev/pmem0 /mnt ext4 rw,dax=always 0 0\n", True),
        ("virtio-pmem-xfs", "/dev/pmem0 /mnt xfs rw,dax=always 0 0\n", True),
        ("virtio-pmem-xfs", "/dev/pmem0 /mnt xfs rw 0 0\n", False),
        ("virtio-pmem-xfs", "/dev/pmem0 /mnt ext4 rw,dax=always 0 0\n", False),
    ],
)
def test_a_pmem_is_used_only_if_its_file_system_is_mounted_for_dax(
    name: str, mounted: str, good: bool
) -> None:
    guest = GuestWith({"/proc/mounts": mounted})
    if good:
        assert mount(name, guest).path == "ram/memory"
    else:
        with pytest.raises(HostfaultError, match="not a DAX mount"):
            mount(name, guest)


def test_what_makes_a_file_system_comes_with_a_guest_that_needs_it() -> None:
    assert BACKINGS["virtio-pmem"].guest_programs == ()
    (program,) = BACKINGS["virtio-pmem-xfs"].guest_programs
    guest = GuestWith({"/proc/mounts": "/dev/pmem0 /mnt xfs rw,dax=always 0 0\n"})
    mount("virtio-pmem-xfs", guest)
    assert guest.ran[0].split()[0] == Path(program).name


def test_a_page_of_a_dax_device_is_where_the_device_begins() -> None:
    said = 'Memory device [nvdimm]: ""\r\n  addr: 0x100000000\r\n  slot: 0\r\n'
    page = Page("ram/memory", devdax.DATA + 0x8000, "tmpfs")
    assert frame(BACKINGS["devdax"], page, ("ram/memory", page.offset), said) == 0x100208
    view = BACKINGS["devdax"].view()
    assert view.start % devdax.DATA == view.length % devdax.DATA == 0, "whole huge pages"
    assert view.start + view.offset + devdax.DATA == page.offset


def test_a_dax_device_that_begins_elsewhere_is_refused() -> None:
    assert mount("devdax", GuestWith({"resource": "0x100000000\n0x100200000\n"})).path
    with pytest.raises(HostfaultError, match="0x400000 into the NVDIMM"):
        mount("devdax", GuestWith({"resource": "0x100000000\n0x100400000\n"}))


def test_only_a_bar_that_is_mapped_has_an_address() -> None:
    assert find_bar(PCI, SLOT, 2) == 0xFE000000
    assert find_bar(PCI, 2, 2) == 0xFD000000
    for text in ("", PCI.replace("at 0xfe000000 [0xfe1fffff].", "(not mapped)")):
        with pytest.raises(HostfaultError, match="where BAR 2 of slot 0x10 is"):
            find_bar(text, SLOT, 2)


@pytest.mark.parametrize("backing", IN_RAM, ids=lambda each: each.name)
def test_the_parts_of_guest_memory_are_all_of_it(backing: Any) -> None:
    words = backing.qemu_options("/run/x").memory
    sizes = [int(word.partition("size=")[2].partition(",")[0]) for word in words if "size=" in word]
    assert sum(sizes) == GUEST_MEMORY << 20
    assert sizes[0] == START
    view = backing.view()
    assert view.start == START
    assert view.start + view.length <= START + sizes[1]
    assert view.offset % backing.store.page_size == 0


@pytest.mark.parametrize("name", ["ram", "ram-hugetlb", "ivshmem", "virtio-pmem"])
def test_the_memory_backend_of_the_page_and_no_other_has_a_policy(name: str) -> None:
    options = BACKINGS[name].qemu_options("/run/x", "auto")
    having = [word for word in (*options.memory, *options.devices) if "on-unbacked=auto" in word]
    assert len(having) == 1
    assert ",id=part," in having[0]
    plain = BACKINGS[name].qemu_options("/run/x")
    assert not any("on-unbacked" in word for word in (*plain.memory, *plain.devices))


def test_a_window_that_is_no_memory_backend_can_have_no_policy() -> None:
    with pytest.raises(MissingCapabilityError):
        BACKINGS["virtiofs-dax"].qemu_options("/run/x", "stop")


# --- what the agent does for them -----------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with local_agent(tmp_path / "run", tmp_path) as agent:
        yield agent


@pytest.mark.parametrize("name", ["ram-hugetlb", "ram-ext4"])
def test_what_takes_from_a_machine_is_for_machines_of_our_own(agent: Agent, name: str) -> None:
    with pytest.raises(MissingCapabilityError, match=r"emulated-host: .*use --host emulated"):
        BACKINGS[name].start(agent, "/x", Python(("python3",), {}))


def test_pages_are_found_by_what_they_hold(agent: Agent) -> None:
    text = "hostfault-range\n" * (PAGE_SIZE // 16)
    agent.make_file("data", [0, None, 1, None, None, None], PAGE_SIZE)
    path = Path(str(agent.hello()["dir"])) / "data"
    with path.open("r+b") as stream:
        for at in (1, 3, 4, 5):
            write_at(stream.fileno(), at * PAGE_SIZE, text.encode())
    assert agent.find_pages("data", text, 1) == PAGE_SIZE
    assert agent.find_pages("data", text, 3) == 3 * PAGE_SIZE
    with pytest.raises(HostfaultError, match="no 4 pages in a row"):
        agent.find_pages("data", text, 4)


HOLDER = """
import ctypes, mmap, os, time
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, 8192)
memory = mmap.mmap(fd, 8192)
memory[4096] = 7
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
time.sleep(1000)
"""


def test_a_memfd_of_a_child_is_acted_on_and_its_memory_is_looked_into(agent: Agent) -> None:
    agent.open("holder", [sys.executable, "-c", HOLDER], {"PATH": os.defpath})
    said = b""
    while not said.endswith(b"\n"):
        said += agent.hear("holder", 1.0) or b""
    address = int(said)
    name, offset = agent.mapped_at("holder", address + PAGE_SIZE) or ("", 0)
    assert (name, offset) == (cast("Any", BACKINGS["ram-memfd"]).store.mapped_as, PAGE_SIZE)
    agent.adopt_descriptor("holder", name, "memory")
    assert agent.byte("memory", PAGE_SIZE) == 7
    agent.write_pages("memory", PAGE_SIZE, [9], PAGE_SIZE)
    assert agent.peek("holder", address + PAGE_SIZE) == 9
    agent.truncate("memory", PAGE_SIZE)
    assert agent.peek("holder", address + PAGE_SIZE) is None
    with pytest.raises(HostfaultError, match="no descriptor of /memfd:other"):
        agent.adopt_descriptor("holder", "/memfd:other (deleted)", "memory")
