"""What backings have in common in which guest memory is a range of one host file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hostfault.backing.base import NUMBER, PAGES, QEMU_CHILD, GuestView
from hostfault.backing.store import FILE, Store
from hostfault.case.model import PAGE_SIZE, Page
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder

_TRANSLATION = re.compile(r"Host virtual address for 0x[0-9a-f]+ \(([^)]*)\) is (0x[0-9a-f]+)")


def make_page(agent: Agent, store: Store, at: int, fill: Sequence[int | None]) -> Page:
    """Write the range that begins at ``at`` in the file that is there; a hole is punched."""
    agent.write_pages(FILE, at, fill, store.page_size)
    offset = at + NUMBER * store.page_size
    file_system = agent.file_system(FILE)
    return Page(FILE, offset, file_system, store.page_size, store.private, store.huge)


def view_of(store: Store, path: str, start: int) -> GuestView:
    """The range as the guest's task opens it."""
    return GuestView(path, start, PAGES * store.page_size, NUMBER * store.page_size)


def proven_frame(agent: Agent, recorder: Recorder, store: Store, address: int, offset: int) -> int:
    """The frame of a guest address, if QEMU and its mappings agree that it is that of the file.

    (HMP ``gpa2hva``; /proc/PID/maps of QEMU has the file's offset at that host address.)
    """
    said = recorder.monitor(f"gpa2hva {address:#x}")
    found = _TRANSLATION.search(said)
    if found is None:
        raise HostfaultError(f"QEMU does not know guest address {address:#x}: {said}")
    mapped = agent.mapped_at(QEMU_CHILD, int(found[2], 16))
    if mapped is None or (mapped[0], mapped[1]) != (store.mapped_as, offset):
        raise HostfaultError(
            f"guest address {address:#x} is backed by {mapped}, not by {store.mapped_as} at "
            f"{offset:#x}"
        )
    return address // PAGE_SIZE
