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


def place_of(recorder: Recorder, gfn: int) -> VcpuPlace | None:
    """Where the first vCPU is, and whether one of its registers points into a guest frame.

    None if QEMU does not tell. Raises :class:`HostfaultError` for a QEMU that does not answer.
    """
    text = recorder.monitor("info registers")
    found = _INSTRUCTION.search(text)
    if found is None:
        return None
    points = any(_frame_of(recorder, address) == gfn for address in _addresses(text))
    return VcpuPlace(int(found[1], 16), gfn if points else None)


def _addresses(registers: str) -> Iterator[int]:
    """An address of each page that a general-purpose register may point to."""
    values = (int(value, 16) for value in _REGISTER.findall(registers))
    pages = {value // PAGE_SIZE: value for value in values}
    yield from (value for page, value in pages.items() if page)


def _frame_of(recorder: Recorder, address: int) -> int | None:
    found = _ADDRESS.search(recorder.monitor(f"gva2gpa {address:#x}"))
    return int(found[1], 16) // PAGE_SIZE if found else None
