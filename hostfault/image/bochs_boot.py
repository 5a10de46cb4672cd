"""What a machine in Bochs boots from: a kernel and its parameters, put into its memory.

No boot loader: images/bochs/start.S, an option ROM, enters the kernel as the 32-bit boot protocol
of Documentation/arch/x86/boot.rst wants it. Offsets in ``struct boot_params`` ("zero page") are
those of Documentation/arch/x86/zero-page.rst and of the protocol's "Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from hostfault.image.bochs import INITRAMFS_AT, KERNEL_AT, PARAMETERS_AT
from hostfault.plumbing.cache import Cache, key_of
from hostfault.plumbing.errors import UsageError

RAM, RESERVED, ACPI = 1, 2, 3  # types of an entry of the e820 table
PAGE = 4096
ROM_SIZE = 512
_HEADER = 0x1F1  # where the setup header begins
_LAYOUT = "1"  # change it when this module makes other files of the same inputs


@dataclass(frozen=True)
class BootFiles:
    """Files that Bochs puts into the machine's memory."""

    kernel: Path  # what of a bzImage runs in protected mode
    parameters: Path
    rom: Path
    initramfs: Path


def boot_files(
    cache: Cache, image: Path, initramfs: Path, command_line: str, start: Path, memory: int
) -> BootFiles:
    """Make the files for a bzImage; ``start`` is the ROM's code, ``memory`` the machine's, MiB.

    Raises :class:`UsageError` for a kernel that has no such entry, or does not fit.
    """
    key = key_of(
        {
            "layout": _LAYOUT,
            "image": image,
            "initramfs": str(initramfs.stat().st_size),
            "command line": command_line,
            "start": start,
            "memory": str(memory),
        }
    )

    def build(place: Path) -> None:
        whole = image.read_bytes()
        size = initramfs.stat().st_size
        (place / "kernel").write_bytes(protected_part(whole))
        words = boot_parameters(whole, size, command_line, memory)
        (place / "parameters").write_bytes(words)
        (place / "rom").write_bytes(option_rom(start.read_bytes()))

    place = cache.obtain("bochs-boot", key, build)
    return BootFiles(place / "kernel", place / "parameters", place / "rom", initramfs)


def protected_part(image: bytes) -> bytes:
    """What of a bzImage is loaded at 1 MiB: all behind the sectors of its real-mode part."""
    return image[(image[_HEADER] or 4) * 512 + 512 :]


def option_rom(code: bytes) -> bytes:
    """A ROM of 512 bytes whose sum is zero, as a BIOS wants it."""
    if len(code) >= ROM_SIZE:
        raise AssertionError(f"the option ROM has {len(code)} bytes")
    rom = code.ljust(ROM_SIZE, b"\0")
    return rom[:-1] + bytes([-sum(rom) % 256])


def boot_parameters(image: bytes, initramfs: int, command_line: str, memory: int) -> bytes:
    """The boot parameters of a kernel, with its command line behind them.

    ``initramfs`` is the size of that at :data:`INITRAMFS_AT`, in bytes. Raises
    :class:`UsageError` for a kernel whose protocol is too old, or that does not fit.
    """
    if image[0x202:0x206] != b"HdrS" or _word(image, 0x206) < 0x20A:  # 2.10 has init_size
        raise UsageError("this kernel's boot protocol is older than 2.10: Bochs needs a bzImage")
    end = _long(image, 0x258) + _long(image, 0x260)  # pref_address, init_size
    if end > PARAMETERS_AT:
        raise UsageError(f"the kernel unpacks itself up to {end:#x}, where its parameters are")
    if INITRAMFS_AT + initramfs > (memory << 20) - ACPI_SIZE:
        raise UsageError(f"an initramfs of {initramfs >> 20} MiB does not fit into {memory} MiB")
    page = bytearray(PAGE)
    after_header = 0x202 + image[0x201]
    page[_HEADER:after_header] = image[_HEADER:after_header]
    page[0x210] = 0xFF  # type_of_loader: none that has a number
    struct.pack_into("<I", page, 0x214, KERNEL_AT)  # code32_start
    struct.pack_into("<II", page, 0x218, INITRAMFS_AT, initramfs)
    struct.pack_into("<I", page, 0x228, PARAMETERS_AT + PAGE)  # cmd_line_ptr
    entries = memory_map(memory)
    page[0x1E8] = len(entries)
    for number, entry in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, *entry)
    return bytes(page) + command_line.encode() + b"\0"


ACPI_SIZE = 0x10000  # bytes at the end of memory: ACPI_DATA_SIZE of Bochs's bios/rombios.h


def memory_map(memory: int) -> list[tuple[int, int, int]]:
    """Start, length and type of what Bochs's BIOS tells of so many MiB (int 15h, ax=e820h)."""
    end = (memory << 20) - ACPI_SIZE
    return [
        (0, 0x9FC00, RAM),
        (0x9FC00, 0x400, RESERVED),
        (0xE8000, 0x18000, RESERVED),
        (0x100000, end - 0x100000, RAM),
        (end, ACPI_SIZE, ACPI),
        (0xFFFC0000, 0x40000, RESERVED),
    ]


def _word(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", data, at)[0])


def _long(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])
