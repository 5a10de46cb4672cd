"""What code runs, by its build id: modules of the kernel, and programs."""

from __future__ import annotations

import struct
from pathlib import Path

_HEAD = 1 << 16  # bytes
_NOTE = struct.pack("=III4s", 4, 20, 3, b"GNU\0")  # NT_GNU_BUILD_ID, 20 bytes


def build_id_of(module: str) -> str:
    """The build id of a module that is loaded, in hex; "" if it is built in, absent or has none.

    An ELF note: three numbers of four bytes, of which the first two are the lengths of name and
    content, then both (elf(5), "Notes").
    """
    try:
        note = Path(f"/sys/module/{module}/notes/.note.gnu.build-id").read_bytes()
    except OSError:
        return ""
    return _content_of(note)


def build_id_of_program(pid: int, name: str) -> str:
    """The build id of what a process runs, in hex; "" if it has none or is gone.

    That is its program, unless a loader was told to run another one: then the file called ``name``
    that it has mapped. (proc(5); the note is among the first pages of a program.)
    """
    try:
        running = Path(f"/proc/{pid}/exe")
        if running.readlink().name != name:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            running = next(Path(line.split(maxsplit=5)[5]) for line in lines if _maps(line, name))
        with running.open("rb") as stream:
            head = stream.read(_HEAD)
    except (OSError, StopIteration):
        return ""
    at = head.find(_NOTE)
    return "" if at < 0 else _content_of(head[at:])


def _maps(line: str, name: str) -> bool:
    return line.endswith(f"/{name}")


def _content_of(note: bytes) -> str:
    name_size, size = struct.unpack_from("=II", note)
    start = 12 + (name_size + 3) // 4 * 4
    return note[start : start + size].hex()
