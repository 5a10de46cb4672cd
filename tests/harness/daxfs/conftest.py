"""The real daemon as a child process, with a scripted front-end at its other end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from daxfs_guest import Guest

import hostfault
from hostfault.plumbing import process


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory that is served, with a secret beside it."""
    (tmp_path / "secret").write_bytes(b"secret")
    directory = tmp_path / "shared"
    directory.mkdir()
    return directory


@pytest.fixture
def launcher() -> list[str]:
    """What the daemon's command line begins with."""
    return []


@pytest.fixture
def options() -> list[str]:
    """What the daemon's command line ends with."""
    return []


@pytest.fixture
def connected(
    tmp_path: Path, shared: Path, launcher: list[str], options: list[str]
) -> Iterator[Guest]:
    """A front-end that has said nothing yet."""
    root = Path(hostfault.__file__).parents[1]
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as main:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        listener.set_inheritable(True)
        common = ["--fd", listener.fileno(), "--shared", shared, "--log", tmp_path / "log"]
        argv = [*launcher, sys.executable, "-S", "-m", "hostfault.daxfs"]
        argv += [*map(str, common), *options]
        # -S: without site-packages it starts faster, and can't import from there by accident.
        env = os.environ | {"PYTHONPATH": str(root)}
        with process.spawn(
            argv, log=tmp_path / "stderr", env=env, pass_fds=(listener.fileno(),)
        ) as daemon:
            main.connect(str(tmp_path / "s"))
            with closing(Guest(main, daemon, tmp_path / "log")) as guest:
                yield guest


@pytest.fixture
def guest(connected: Guest) -> Guest:
    """A guest that has mounted the shared directory."""
    connected.start()
    connected.init()
    return connected
