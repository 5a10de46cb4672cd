"""Users that nobody is, for what a guest may break into."""

from __future__ import annotations

import os
import pwd
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Where systemd finds users for a service's lifetime (systemd.exec(5), DynamicUser=): on any
# distribution these numbers are given to nobody for good.
FIRST, LAST = 61184, 65519
CHOWN, KILL, SETGID, SETUID, SYS_PTRACE = 0, 5, 6, 7, 19  # linux/capability.h
NEEDED = (CHOWN, KILL, SETGID, SETUID, SYS_PTRACE)  # to change users, and look after them then


def other_users(number: int) -> list[int]:
    """Numbers of users, and of groups, that nobody is at this moment; none if we may not be them.

    That takes root with the capabilities :data:`NEEDED`, in a user namespace that knows them.
    """
    if os.geteuid() != 0 or not _capable():
        return []
    taken = {found.pw_uid for found in pwd.getpwall()} | set(_running())
    free = sorted(_mapped() - taken)
    return random.sample(free, number) if len(free) >= number else []


def _capable() -> bool:
    """Whether this process has all capabilities that are needed (proc(5), CapEff)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return all(effective >> each & 1 for each in NEEDED)
    return False


def _running() -> Iterator[int]:
    """The users of all processes that there are."""
    for each in Path("/proc").iterdir():
        if each.name.isdecimal():
            with suppress(OSError):
                yield each.stat().st_uid


def _mapped() -> set[int]:
    """The numbers that this user namespace knows, of ours, as user and as group.

    (user_namespaces(7).) Each file is read once: 4,336 times two are more than 10 s for a host
    whose CPU is emulated.
    """
    candidates = range(FIRST, LAST)
    known = set(candidates)
    for name in ("uid_map", "gid_map"):
        ranges = list(_ranges(Path(f"/proc/self/{name}")))
        known &= {n for n in candidates if any(begin <= n < begin + size for begin, size in ranges)}
    return known


def _ranges(path: Path) -> Iterator[tuple[int, int]]:
    for line in path.read_text().splitlines():
        first, _, count = line.split()
        yield int(first), int(count)
