"""Where a vCPU is found, by what QEMU's human monitor says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hostfault.case.model import VcpuPlace
from hostfault.run.place import place_of

GFN = 0xF8008
RIP = 0x4016B5
REGISTERS = (
    "CPU#0\r\n"
    "RAX=00007f0000008010 RBX=0000000000000001 RCX=0000000000000000 RDX=00007f0000008020\r\n"
    "RSI=00007ffc12345678 RDI=0000000000000000 RBP=00007ffc12345678 RSP=00007ffc12345600\r\n"
    "R8 =00007f1111111111 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000246\r\n"
    "RIP=00000000004016b5 RFL=00010246 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\r\n"
)
IDLE = "RAX=0000000000000000\r\nRIP=ffffffff82000000 RFL=00000246\r\n"


class Monitor:
    """A monitor that knows some addresses of the guest."""

    def __init__(self, pages: Mapping[int, int], registers: str = REGISTERS) -> None:
        self.pages = pages
        self.registers = registers
        self.asked: list[int] = []
        self.vcpu = 0  # whose registers those are

    def execute(self, _command: str, arguments: Mapping[str, Any]) -> str:
        line = str(arguments["command-line"])
        if arguments["cpu-index"] != self.vcpu:
            return IDLE if line == "info registers" else "Unmapped\r\n"
        if line == "info registers":
            return self.registers
        address = int(line.removeprefix("gva2gpa "), 16)
        self.asked.append(address)
        page = self.pages.get(address >> 12)
        return "Unmapped\r\n" if page is None else f"gpa: {page << 12 | address & 0xFFF:#x}\r\n"


def found(monitor: Monitor) -> VcpuPlace | None:
    return place_of(cast("Any", monitor), GFN)


def test_a_register_that_points_into_the_frame_is_found() -> None:
    assert found(Monitor({0x7F0000008: GFN})) == VcpuPlace(RIP, GFN)
    assert found(Monitor({0x7F1111111: GFN})) == VcpuPlace(RIP, GFN)  # "R8 =", with a blank


def test_a_register_that_points_elsewhere_is_not() -> None:
    assert found(Monitor({0x7F0000008: GFN + 1, 0x7FFC12345: 3})) == VcpuPlace(RIP, None)


def test_each_page_is_asked_for_once_and_page_zero_never() -> None:
    monitor = Monitor({})
    found(monitor)
    assert sorted(address >> 12 for address in monitor.asked) == [
        RIP >> 12,
        0x7F0000008,
        0x7F1111111,
        0x7FFC12345,
    ]


def test_an_instruction_in_the_frame_is_found() -> None:
    assert found(Monitor({RIP >> 12: GFN})) == VcpuPlace(RIP, GFN)


def test_of_several_vcpus_the_one_that_points_there_is_taken() -> None:
    monitor = Monitor({0x7F0000008: GFN})
    monitor.vcpu = 1
    assert place_of(cast("Any", monitor), GFN, 2) == VcpuPlace(RIP, GFN)
    assert place_of(cast("Any", Monitor({})), GFN, 2) == VcpuPlace(RIP, None)


def test_a_qemu_that_shows_no_registers_tells_nothing() -> None:
    assert found(Monitor({}, "unknown command: 'info registers'")) is None
