"""What the daemon gives up before a guest says its first word.

It serves a guest that is not trusted, so a hole in it should lead nowhere. It becomes a user that
has nothing, and Landlock (Linux Documentation/userspace-api/landlock.rst) keeps it in its
share: it opens, makes and removes files there and nowhere else, reaches no TCP port and signals
nobody. What it has open already (its log, its socket, guest memory) stays open.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system call numbers, any architecture
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
OLDEST_ABI = 2  # without LANDLOCK_ACCESS_FS_REFER no rename between directories would work

# linux/landlock.h, LANDLOCK_ACCESS_FS_*: how many of its bits an ABI knows, from the lowest on.
BITS_BY_ABI = {2: 14, 3: 15, 4: 15, 5: 16}
EXECUTE, MAKE_CHAR, MAKE_BLOCK, IOCTL_DEV = 1 << 0, 1 << 6, 1 << 11, 1 << 15
BIND_AND_CONNECT_TCP = 0b11  # LANDLOCK_ACCESS_NET_*, from ABI 4 on
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11  # LANDLOCK_SCOPE_*, from ABI 6 on

_LIBC = ctypes.CDLL(None, use_errno=True)


def become(user: int, group: int) -> None:
    """Be another user for good, without any group beside his own. Raises OSError.

    All capabilities go with that (capabilities(7)), and the parent-death signal, too, so that one
    is asked for again (prctl(2)).
    """
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    _checked(_LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
    if os.getppid() != parent:
        raise ProcessLookupError("the parent has died meanwhile")


def stay_in(share: int) -> int:
    """Keep to the directory of a descriptor from now on; returns Landlock's ABI.

    0: this kernel has no Landlock that would do, and nothing is kept. Raises OSError.
    """
    _checked(_LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    abi = _LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), CREATE_RULESET_VERSION)
    if abi < OLDEST_ABI:
        return 0
    handled = (1 << BITS_BY_ABI[min(abi, max(BITS_BY_ABI))]) - 1
    net = BIND_AND_CONNECT_TCP if abi >= 4 else 0
    scoped = ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    known = {2: 8, 3: 8, 4: 16, 5: 16}.get(abi, 24)  # bytes of the structure
    attributes = struct.pack("=QQQ", handled, net, scoped)[:known]
    ruleset = _checked(_LIBC.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(known), 0))
    try:
        allowed = handled & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)
        rule = struct.pack("=Qi", allowed, share)
        _checked(_LIBC.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0))
        _checked(_LIBC.syscall(RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return int(abi)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
