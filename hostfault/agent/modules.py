"""The modules of the kernel that runs."""

from __future__ import annotations

import struct
from pathlib import Path


def build_id_of(module: str) -> str:
    """The build id of a module that is loaded, in hex; "" if it is built in, absent or has none.

    An ELF note: three numbers of four bytes, of which the first two are the lengths of name and
    content, then both (elf(5), "Notes").
    """
    try:
        note = Path(f"/sys/module/{module}/notes/.note.gnu.build-id").read_bytes()
    except OSError:
        return ""
    name_size, size = struct.unpack_from("=II", note)
    start = 12 + (name_size + 3) // 4 * 4
    return note[start : start + size].hex()
