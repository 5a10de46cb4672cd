"""What proc(5) says of a process's memory, as the agent reads it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from hostfault.agent.procstat import huge_in

SMAPS = """\
7f0000000000-7f0002000000 rw-s 00000000 00:25 3    /run/hostfault/run/ram/memory
Size:              32768 kB
Rss:                4096 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
THPeligible:           1
VmFlags: rd wr sh mr mw me ms sd
7f0002000000-7f0002001000 rw-p 00000000 00:00 0
Rss:                   4 kB
VmFlags: rd wr mr mw me ac sd
"""


def test_of_a_mapping_the_huge_pages_are_told_from_the_small_ones() -> None:
    assert huge_in(SMAPS, 0x7F0001000000) == (4 << 20, 2 << 20)
    assert huge_in(SMAPS, 0x7F0002000FFF) == (4 << 10, 0)


@pytest.mark.parametrize("address", [0x7EFFFFFFFFFF, 0x7F0002001000])
def test_where_nothing_is_mapped_there_is_nothing_to_count(address: int) -> None:
    with pytest.raises(LookupError, match=f"{address:#x}"):
        huge_in(SMAPS, address)


def test_of_this_process_it_finds_the_page_that_was_touched() -> None:
    size = os.sysconf("SC_PAGESIZE")
    with mmap.mmap(-1, 4 * size) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        pages, huge = huge_in(Path("/proc/self/smaps").read_text(), address)
    assert pages >= size
    assert huge == 0
