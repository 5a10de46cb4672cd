"""The daemon: ``python3 -m hostfault.daxfs``.

Serves one connection and ends: 0 when the front-end hung up, 1 when it broke the protocol, 2 for
a command line that can't be served.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from hostfault.daxfs import confine
from hostfault.daxfs.device import DaemonSettings, Device
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.nodes import raise_descriptor_limit
from hostfault.daxfs.vhost_user import PeerError
from hostfault.daxfs.window import ALIGNMENT, MAX_SIZE

MAX_TAG = 36  # bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _leave)
    os.umask(0)  # the guest's kernel has applied its umask
    with (
        options.log.open("ab", buffering=0) as stream,
        socket.socket(fileno=options.fd) as listener,
    ):
        log = EventLog(stream)
        max_nodes, max_handles = raise_descriptor_limit()
        limits = (max_nodes, max_handles, options.keep_free)
        share = os.open(options.shared, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if options.user is not None:
            confine.become(*options.user)
        abi = confine.stay_in(share)
        rights = {"uid": os.geteuid(), "landlock": abi}
        # By its descriptor: the path may lead through what this user may no longer search.
        directory = Path(f"/proc/self/fd/{share}")
        settings = DaemonSettings(directory, options.window, options.tag, *limits, options.poll)
        log.event("listening", shared=str(options.shared), window=options.window, **rights)
        connection, _ = listener.accept()
        listener.close()
        log.event("connected")
        with connection:
            try:
                Device(connection, settings, log).serve()
            except PeerError as error:
                log.event("disconnect", clean=False, reason=str(error))
                return 1
        log.event("disconnect", clean=True)
    return 0


def _leave(number: int, _frame: object) -> None:
    """Let the ``finally`` blocks run: a file may be longer than it should be at this moment."""
    raise SystemExit(128 + number)


def _ids(text: str) -> tuple[int, int]:
    """Two numbers. Raises ValueError."""
    user, group = map(int, text.split(":"))
    return user, group


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hostfault.daxfs", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="a listening socket, inherited")
    parser.add_argument("--shared", type=Path, required=True, help="the directory to serve")
    parser.add_argument("--log", type=Path, required=True, help="the log, as JSON lines")
    parser.add_argument("--window", type=int, default=64 << 20, help="bytes of the DAX window")
    parser.add_argument("--tag", default="hostfault", help="the name that the guest mounts")
    parser.add_argument(
        "--keep-free",
        type=int,
        default=0,
        metavar="BYTES",
        help="of the host's file system, which the guest can't fill (a sixteenth of it at most; "
        "default 0: it can fill it)",
    )
    parser.add_argument(
        "--poll",
        action="store_true",
        help="look for requests every 1 to 20 milliseconds, and tell the guest not to notify",
    )
    parser.add_argument(
        "--user",
        type=_ids,
        metavar="UID:GID",
        help="become this user, once all is open; only root can",
    )
    options = parser.parse_args(arguments)
    if not options.shared.is_dir():
        parser.error(f"--shared {options.shared}: not a directory")
    if options.window % ALIGNMENT or not 0 < options.window <= MAX_SIZE:
        parser.error(f"--window {options.window}: not a multiple of {ALIGNMENT} up to {MAX_SIZE}")
    if not 0 < len(options.tag.encode()) <= MAX_TAG:
        parser.error(f"--tag {options.tag}: not 1 to {MAX_TAG} bytes")
    return options


if __name__ == "__main__":
    sys.exit(main())
