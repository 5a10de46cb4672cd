"""Two nights never meet: a lock that the kernel drops with its holder, and says who that is."""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostfault.plumbing.deadline import wall_clock
from hostfault.plumbing.errors import HostfaultError


class HeldError(HostfaultError):
    """Another run is on."""


@contextmanager
def held(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock during the block. Raises :class:`HeldError` that says who has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise HeldError(f"{path} is held by {_who(file.read())}") from None
        file.truncate(0)
        file.write(json.dumps(_self(doing)) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _self(doing: str) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "machine": platform.node(),
        "user": getpass.getuser(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_clock())),
        "doing": doing,
    }


def _who(text: str) -> str:
    try:
        said = json.loads(text)
        return (
            f"process {said['pid']} of {said['user']} on {said['machine']} "
            f"since {said['since']}: {said['doing']}"
        )
    except (ValueError, KeyError, TypeError):
        return "another run that has only just begun"
