"""Let another process make a system call, by ptrace(2): what only the process itself may ask for.

The thread is stopped wherever it is, makes the call from the vDSO's own system call instruction,
and goes on where it was: a call of its own that was interrupted is begun again by the kernel.
Of x86-64 only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# linux/ptrace.h
PTRACE_CONT, PTRACE_GETREGS, PTRACE_SETREGS, PTRACE_DETACH, PTRACE_SYSCALL = 7, 12, 13, 17, 24
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_O_TRACESYSGOOD, PTRACE_EVENT_STOP = 1, 128
INTERRUPTED = signal.SIGTRAP | PTRACE_EVENT_STOP << 8  # what a stop by PTRACE_INTERRUPT tells
AT_SYSCALL = signal.SIGTRAP | 0x80  # one at the begin or the end of a system call
INSTRUCTION = b"\x0f\x05"  # SYSCALL
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")  # registers of a system call's (syscall(2))
LARGEST_ERRNO = 4095  # linux/err.h
PATIENCE = 5.0  # seconds for a thread to stop
INTERVAL = 0.002  # seconds between two looks: nobody else tells of a thread that stops

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_LIBC.ptrace.restype = ctypes.c_long


class _Registers(ctypes.Structure):
    """struct user_regs_struct of sys/user.h."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
            *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


def call_in(pid: int, number: int, *arguments: int) -> int:
    """What a system call returns that the main thread of ``pid`` makes, of at most six arguments.

    Needs the right to trace it. Raises OSError with the call's errno, or for a thread that does
    not stop.
    """
    instruction = _system_call_instruction(pid)
    with _seized(pid) as was:
        now = _Registers.from_buffer_copy(was)
        now.rip, now.rax, now.orig_rax = instruction, number, (1 << 64) - 1
        for register, value in zip(
            ("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False
        ):
            setattr(now, register, value)
        _set_registers(pid, now)
        for _ in ("its begin", "its end"):
            _resume_until(pid, PTRACE_SYSCALL, AT_SYSCALL)
        result = ctypes.c_longlong(_registers(pid).rax).value
    if -LARGEST_ERRNO <= result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


@contextmanager
def _seized(pid: int) -> Iterator[_Registers]:
    """Stop a thread and give its registers; afterwards it goes on with just these."""
    _ptrace(PTRACE_SEIZE, pid, PTRACE_O_TRACESYSGOOD)
    try:
        _ptrace(PTRACE_INTERRUPT, pid)
        _wait_for(pid, INTERRUPTED)
        was = _registers(pid)
        try:
            yield was
        finally:
            # Where it would deliver a signal, the kernel looks whether to begin a call again.
            _ptrace(PTRACE_INTERRUPT, pid)
            _resume_until(pid, PTRACE_CONT, INTERRUPTED)
            _set_registers(pid, was)
    finally:
        _ptrace(PTRACE_DETACH, pid)


def _resume_until(pid: int, how: int, stop: int) -> None:
    _ptrace(how, pid)
    _wait_for(pid, stop)


def _wait_for(pid: int, stop: int) -> None:
    """Wait for a stop of that kind; any other is an error, as a signal would get lost."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        if found is None:
            time.sleep(INTERVAL)
        elif found.si_status == stop:
            return
        else:
            raise OSError(f"thread {pid} stopped by {found.si_status:#x}, not by {stop:#x}")
    raise TimeoutError(f"thread {pid} did not stop within {PATIENCE:.0f} s")


def _registers(pid: int) -> _Registers:
    registers = _Registers()
    _ptrace(PTRACE_GETREGS, pid, data=ctypes.addressof(registers))
    return registers


def _set_registers(pid: int, registers: _Registers) -> None:
    _ptrace(PTRACE_SETREGS, pid, data=ctypes.addressof(registers))


def _ptrace(request: int, pid: int, data: int = 0) -> None:
    if _LIBC.ptrace(request, pid, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {pid}: {os.strerror(number)}")


def _system_call_instruction(pid: int) -> int:
    """Where a process has one in its vDSO (vdso(7)). Raises OSError for a process without."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
                code = os.pread(memory.fileno(), end - begin, begin)
            if INSTRUCTION in code:
                return begin + code.index(INSTRUCTION)
    raise OSError(f"process {pid} has no vDSO with a system call in it")
