"""What a bzImage says about itself: the x86 boot protocol (Documentation/arch/x86/boot.rst).

Offsets are those of "The Real-Mode Kernel Header": they count from the start of the file.
"""

from __future__ import annotations

import struct
from pathlib import Path

from hostfault.plumbing.errors import UsageError

_MAGIC_AT, _MAGIC = 0x202, b"HdrS"
_KERNEL_VERSION_AT = 0x20E  # u16: where the version string is, less 0x200
_LONGEST_HEADER = 0x10000


def release_of(image: Path) -> str:
    """What ``uname -r`` will say, read from the version string in a bzImage.

    Raises :class:`UsageError` for a file that is unreadable or is no bzImage.
    """
    try:
        with image.open("rb") as stream:
            head = stream.read(_LONGEST_HEADER)
    except OSError as error:
        raise UsageError(f"kernel {image}: {error.strerror}") from error
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        hint = (
            " (an ELF file: give arch/x86/boot/bzImage instead)" if head[:4] == b"\x7fELF" else ""
        )
        raise UsageError(f"kernel {image}: not a bzImage{hint}")
    (pointer,) = struct.unpack_from("<H", head, _KERNEL_VERSION_AT)
    version = head[pointer + 0x200 :].split(b"\0", 1)[0].decode(errors="replace")
    if not pointer or not version.strip():
        raise UsageError(f"kernel {image}: its header names no version")
    return version.split()[0]
