"""A virtiofs back-end that is not ours, in place of ours: ``--virtiofsd``.

It gets a socket to listen on, a directory and a tag, as virtiofsd does; what else ours can do (to
poll, to keep room, to log what it maps) is asked of nobody. So where a page of the file is in the
guest is asked of QEMU and of its mappings alone.
"""

from __future__ import annotations

import re

from hostfault.backing.base import BACK_END_CHILD, QEMU_CHILD, Python
from hostfault.case.model import PAGE_SIZE, Page
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import HostfaultError, LaunchError
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder

PATIENCE = 30.0  # seconds for it to listen
FRAME_PATIENCE = 20.0  # seconds for QEMU to have mapped what a guest has touched
_RAM = re.compile(r"(?m)^\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\)")
_TRANSLATION = re.compile(r"Host virtual address for 0x[0-9a-f]+ \([^)]*\) is (0x[0-9a-f]+)")


def start(agent: Agent, python: Python, socket: str, shared: str, tag: str) -> None:
    """Start it; it listens before this returns.

    Raises :class:`LaunchError` with what it printed if it ends first, or ``DeadlineError``.
    """
    options = (f"--socket-path={socket}", f"--shared-dir={shared}", f"--tag={tag}")
    argv = [*python.instead, *options]
    environment = {"PATH": python.env["PATH"]}
    try:
        agent.spawn(BACK_END_CHILD, argv, environment)
    except HostfaultError as error:
        raise LaunchError("the back-end of --virtiofsd", argv, None, str(error)) from error
    deadline = Deadline(PATIENCE, f"{python.instead[0]} to listen on {socket}")

    def look() -> bool | None:
        words = agent.tails([f"{BACK_END_CHILD}.log"], 4000)[0]
        deadline.saw(words)
        code = agent.ended(BACK_END_CHILD)
        if code is not None:
            raise LaunchError("the back-end of --virtiofsd", argv, code, words)
        return agent.listens(socket) or None

    poll(deadline, look)


def frame(agent: Agent, recorder: Recorder, page: Page) -> int:
    """The guest frame of a page of a file that a guest has mapped.

    Where QEMU has the file mapped, says proc(5); where that is in the guest, QEMU (HMP ``info
    mtree`` and ``gpa2hva``). Raises ``DeadlineError`` if there is none.
    """
    deadline = Deadline(
        FRAME_PATIENCE, f"QEMU to map {page.path} at {page.offset:#x} for the guest"
    )

    def look() -> int | None:
        mapped = agent.mappings(QEMU_CHILD, page.path)
        deadline.saw(f"{len(mapped)} mappings of it in QEMU, none of them in the guest's memory")
        wanted = {
            address + page.offset - offset
            for address, length, offset in mapped
            if offset <= page.offset < offset + length
        }
        return find_frame(recorder, wanted) if wanted else None

    return poll(deadline, look)


def find_frame(recorder: Recorder, wanted: set[int]) -> int | None:
    """The guest frame that is at one of some addresses of QEMU's own."""
    for first, last in _ram(recorder.monitor("info mtree -f")):
        begin = _address(recorder, first)
        for address in wanted:
            guest = first + address - (begin or 0)
            if begin is None or not first <= guest <= last:
                continue
            if _address(recorder, guest) == address:
                return guest // PAGE_SIZE
    return None


def _ram(tree: str) -> list[tuple[int, int]]:
    """The ranges of guest-physical memory, first and last byte, each once."""
    found = {(int(each[1], 16), int(each[2], 16)) for each in _RAM.finditer(tree)}
    return sorted(found)


def _address(recorder: Recorder, guest: int) -> int | None:
    """Where QEMU has a guest-physical address, as it says itself."""
    found = _TRANSLATION.search(recorder.monitor(f"gpa2hva {guest:#x}"))
    return None if found is None else int(found[1], 16)
