"""mmdebstrap, which makes root file systems, and what it needs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from hostfault.plumbing.errors import LaunchError, SetupError
from hostfault.plumbing.packages import run_tool

# The last one is often a small tmpfs, or one of which nothing may be run.
_USUAL = (Path("/var/tmp"), Path("/tmp"))  # noqa: S108 (what is made there has a name of its own)
# Its words if it has neither root rights nor a user namespace with ids of its own.
_NO_NAMESPACE = ("unable to pick chroot mode", "newuidmap", "newgidmap")


def mmdebstrap(words: Sequence[str], *, room: int, patience: float) -> None:
    """Run mmdebstrap in a directory with ``room`` bytes, for ``patience`` seconds at most.

    Raises :class:`SetupError` if there is no such directory or this user may not make a root
    file system, and :class:`LaunchError` with its last words if it fails otherwise.
    """
    chosen = os.environ.get("TMPDIR")
    candidates = ([Path(chosen)] if chosen else []) + list(_USUAL)
    environment = {**os.environ, "TMPDIR": str(scratch_directory(room, candidates))}
    try:
        run_tool(["mmdebstrap", *words], what="mmdebstrap", timeout=patience, env=environment)
    except LaunchError as error:
        if os.geteuid() != 0 and any(each in error.log_tail for each in _NO_NAMESPACE):
            raise SetupError(
                "mmdebstrap may make no user namespace here: run this as root; or allow "
                "them, and give this user ids of its own in /etc/subuid and /etc/subgid, as "
                f"subuid(5) has it\n{error}"
            ) from error
        raise


def scratch_directory(room: int, candidates: Iterable[Path]) -> Path:
    """The first of some directories in which a root file system can be made.

    Where there is too little room, mmdebstrap's apt waits for ever. Raises :class:`SetupError`
    that says of each directory why not.
    """
    reasons = []
    for candidate in candidates:
        reason = _why_not(candidate, room)
        if not reason:
            return candidate
        reasons.append(f"{candidate} {reason}")
    raise SetupError(
        f"no directory to make a root file system in, {'; '.join(reasons)}: "
        f"set TMPDIR to one with {room >> 20} MiB"
    )


def _why_not(path: Path, room: int) -> str:
    if not os.access(path, os.W_OK | os.X_OK):
        return "cannot be written"
    system = os.statvfs(path)
    if system.f_flag & os.ST_NOEXEC:
        return "is mounted noexec"
    free = system.f_bavail * system.f_frsize
    if free < room:
        return f"has {free >> 20} MiB free"
    if os.geteuid() != 0 and not _others_may_enter(path):
        return "is not open to the ids that mmdebstrap works with"
    return ""


def _others_may_enter(path: Path) -> bool:
    """Without root rights mmdebstrap works with ids of its own, in a user namespace."""
    whole = path.resolve()
    return all(each.stat().st_mode & 0o001 for each in (whole, *whole.parents))
