"""Where a vCPU is, and whether it is about a certain guest frame: by its registers alone.

Asked through QEMU's human monitor: ``info registers``, and ``gva2gpa``, which walks the page tables
of the guest for an address. Both read the vCPU's own state at that moment, so between the
two the guest may have gone elsewhere; then it is found nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from hostfault.case.model import PAGE_SIZE, VcpuPlace
from hostfault.remote.qmp import Recorder

_REGISTER = re.compile(r"\bR(?:[A-D]X|[SD]I|BP|8 |9 |1[0-5]) ?=([0-9a-f]{16})")
_INSTRUCTION = re.compile(r"\bRIP=([0-9a-f]{16})")
_ADDRESS = re.compile(r"gpa: (0x[0-9a-f]+)")


def place_of(recorder: Recorder, gfn: int, vcpus: int = 1) -> VcpuPlace | None:
    """Where a vCPU is, and whether one of its registers points into a guest frame.

    The first vCPU of which that is so, else the first. None if QEMU does not tell. Raises
    :class:`HostfaultError` for a QEMU that does not answer.
    """
    places = (_place_of_one(recorder, gfn, vcpu) for vcpu in range(vcpus))
    found = [place for place in places if place is not None]
    return next((place for place in found if place.points_to is not None), (*found, None)[0])


def _place_of_one(recorder: Recorder, gfn: int, vcpu: int) -> VcpuPlace | None:
    text = _monitor(recorder, "info registers", vcpu)
    found = _INSTRUCTION.search(text)
    if found is None:
        return None
    points = any(_frame_of(recorder, address, vcpu) == gfn for address in _addresses(text))
    return VcpuPlace(int(found[1], 16), gfn if points else None)


def _addresses(registers: str) -> Iterator[int]:
    """An address of each page that a register may point to: data, or the next instruction."""
    found = _REGISTER.findall(registers) + _INSTRUCTION.findall(registers)
    values = (int(value, 16) for value in found)
    pages = {value // PAGE_SIZE: value for value in values}
    yield from (value for page, value in pages.items() if page)


def _frame_of(recorder: Recorder, address: int, vcpu: int) -> int | None:
    found = _ADDRESS.search(_monitor(recorder, f"gva2gpa {address:#x}", vcpu))
    return int(found[1], 16) // PAGE_SIZE if found else None


def _monitor(recorder: Recorder, line: str, vcpu: int) -> str:
    """A command of the human monitor, about one vCPU (QAPI misc.json)."""
    arguments = {"command-line": line, "cpu-index": vcpu}
    return str(recorder.execute("human-monitor-command", arguments))
