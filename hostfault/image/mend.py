"""A defect of QEMU's that loses guests of an emulated host, mended in our copy of the program.

On a CPU that TCG emulates, VMRUN with an external interrupt to inject delivers it and leaves its
vector in ``exception_index`` (``helper_vmrun()`` of target/i386/tcg/system/svm_helper.c, case
``SVM_EVTINJ_TYPE_INTR``). If then another thread wants the vCPU's thread to leave its loop
(``exit_request``), and no interrupt is pending in that moment, ``cpu_handle_interrupt()`` of
accel/tcg/cpu-exec.c keeps what is there, and ``cpu_handle_exception()`` delivers the vector once
more, as an exception: into the guest's handler of that very interrupt, interrupts on or off. The
guest hangs. With QMP ``stop`` and ``cont`` 70 times a second no guest boots; on a machine with more
work than cores it may happen by itself.

The vector has no use there besides a debug log, so in our copy nothing is stored. In the source,
the line that stores it would have to go.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

log = logging.getLogger(__name__)

# That case, as GCC compiles it. Registers and offsets may be others in another build; but what
# is stored there and is not CPUX86State's lies before it, so its offset is negative.
_VECTOR_STORED = re.compile(
    rb"(?P<store>\x89[\x80-\xbf].{3}\xff)"  # mov %r32, exception_index
    rb"\xc7[\x80-\xbf].{4}\x00{4}"  # exception_is_int = 0
    rb"\x48\xc7[\x80-\xbf].{4}\xff{4}"  # exception_next_eip = -1
    rb"\xf6\x05.{5}\x0f\x85.{4}"  # is it to be logged?
    rb"\xba\x01\x00{3}",  # the argument is_hw of do_interrupt_x86_hardirq()
    re.DOTALL,
)
_NOTHING = b"\x66\x0f\x1f\x44\x00\x00"  # a no-op of six bytes


def mend(program: Path) -> bool:
    """Take the store out of a QEMU, in place; whether that could be done.

    A program in which it is not exactly once is left as it is.
    """
    code = program.read_bytes()
    found = list(_VECTOR_STORED.finditer(code))
    if len(found) != 1:
        log.warning(
            "this QEMU is not one that hostfault can mend (%d places found): on a busy machine "
            "guests of an emulated host may be lost (docs/debugging.md)",
            len(found),
        )
        return False
    begin, end = found[0].span("store")
    program.write_bytes(code[:begin] + _NOTHING + code[end:])
    return True
