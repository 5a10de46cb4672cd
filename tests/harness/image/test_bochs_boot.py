"""What a machine in Bochs boots from; the kernel only pretends."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest

from hostfault.image.bochs import INITRAMFS_AT, KERNEL_AT, PARAMETERS_AT
from hostfault.image.bochs_boot import (
    ACPI,
    PAGE,
    RAM,
    boot_files,
    boot_parameters,
    memory_map,
    option_rom,
    protected_part,
)
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import UsageError


def bzimage(version: int = 0x20F, init_size: int = 60 << 20, sectors: int = 3) -> bytes:
    real = bytearray(512 * (sectors + 1))
    real[0x1F1] = sectors
    real[0x201] = 0x6A  # the header ends at 0x26c
    real[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", real, 0x206, version)
    struct.pack_into("<Q", real, 0x258, 16 << 20)
    struct.pack_into("<I", real, 0x260, init_size)
    real[0x26C:] = b"\xcc" * (len(real) - 0x26C)  # code of the real-mode part
    return bytes(real) + b"protected"


def test_the_kernel_is_what_follows_its_real_mode_part() -> None:
    assert protected_part(bzimage(sectors=39)) == b"protected"


def test_the_parameters_say_where_everything_is() -> None:
    page = boot_parameters(bzimage(), 12345, "quiet a=b", 1024)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x26C:0x2D0] == bytes(0x2D0 - 0x26C), "of the real-mode code nothing is copied"
    assert struct.unpack_from("<I", page, 0x214)[0] == KERNEL_AT
    assert struct.unpack_from("<II", page, 0x218) == (INITRAMFS_AT, 12345)
    assert struct.unpack_from("<I", page, 0x228)[0] == PARAMETERS_AT + PAGE
    assert page[PAGE:] == b"quiet a=b\0"
    first = struct.unpack_from("<QQI", page, 0x2D0)
    assert (page[0x1E8], first) == (6, (0, 0x9FC00, RAM))


def test_the_memory_that_is_told_ends_with_acpis_tables() -> None:
    entries = memory_map(512)
    assert (512 * (1 << 20) - 0x10000, 0x10000, ACPI) in entries
    starts = [start for start, _, _ in entries]
    assert starts == sorted(starts)
    assert all(a + length <= b for (a, length, _), (b, _, _) in itertools.pairwise(entries))


@pytest.mark.parametrize(
    ("image", "initramfs", "complaint"),
    [
        (b"\x7fELF".ljust(2048, b"\0"), 1, "boot protocol is older than 2.10"),
        (bzimage(version=0x209), 1, "boot protocol is older than 2.10"),
        (bzimage(init_size=1 << 30), 1, "unpacks itself up to 0x41000000"),
        (bzimage(), 800 << 20, "initramfs of 800 MiB does not fit into 1024 MiB"),
    ],
)
def test_a_kernel_that_cannot_be_entered_is_an_error(
    image: bytes, initramfs: int, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        boot_parameters(image, initramfs, "", 1024)


def test_a_rom_has_the_sum_that_a_bios_wants() -> None:
    rom = option_rom(b"\x55\xaa\x01code")
    assert (len(rom), sum(rom) % 256, rom[:7]) == (512, 0, b"\x55\xaa\x01code")


def test_the_files_follow_the_command_line(tmp_path: Path) -> None:
    for name, data in (("image", bzimage()), ("initramfs", b"i"), ("start", b"\x55\xaa\x01")):
        (tmp_path / name).write_bytes(data)
    cache = Cache(tmp_path / "cache")
    made = [
        boot_files(
            cache, tmp_path / "image", tmp_path / "initramfs", words, tmp_path / "start", 1024
        )
        for words in ("ept=0", "ept=1")
    ]
    cache.close()
    assert made[0].parameters.read_bytes().endswith(b"ept=0\0")
    assert made[1].parameters.read_bytes().endswith(b"ept=1\0")
    assert made[0].kernel.read_bytes() == b"protected"
