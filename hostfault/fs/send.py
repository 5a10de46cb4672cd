"""Files into a guest, through the share: its shell is for words, not for megabytes."""

from __future__ import annotations

import base64
import gzip
import shlex

from hostfault.backing.virtiofs_dax import MOUNT_POINT, SHARED
from hostfault.plumbing.deadline import Deadline
from hostfault.remote.agent import Agent
from hostfault.remote.shell import Shell

NAME = "hostfault-sent"
PIECE = 1 << 20  # characters of a file that one request writes
AT_A_TIME = 32  # pieces in the share
HERE = "/tmp/hostfault-sent"  # noqa: S108 (in the guest)


def send_program(agent: Agent, guest: Shell, data: bytes, path: str, deadline: Deadline) -> None:
    """Make a program of ``data`` in the guest.

    Raises :class:`~hostfault.plumbing.errors.HostfaultError` with what the guest or the host said.
    """
    where = shlex.quote(path)
    packed = gzip.compress(data, 1)
    _send(agent, guest, packed, f"gunzip -c >{where} && chmod 755 {where}", deadline)


def send_tree(
    agent: Agent, guest: Shell, archive: bytes, directory: str, deadline: Deadline
) -> None:
    """Unpack a gzipped tar archive below a directory of the guest. Raises as above."""
    where = shlex.quote(directory)
    command = f"mkdir -p {where} && gunzip -c | tar -xf - -C {where}"
    _send(agent, guest, archive, command, deadline)


def _send(agent: Agent, guest: Shell, data: bytes, command: str, deadline: Deadline) -> None:
    """Have a command read data, which lie in the share for that long, as text.

    In pieces: the agent answers nothing else while it writes one. Not many of them at a time: the
    share is smaller than a root of Debian's.
    """
    text = base64.encodebytes(data).decode()
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    guest.check(f": >{HERE}", deadline)
    for begin in range(0, len(pieces), AT_A_TIME):
        names = []
        for number, piece in enumerate(pieces[begin : begin + AT_A_TIME]):
            names.append(f"{NAME}-{number}")
            agent.write(f"{SHARED}/{names[-1]}", piece)
        files = " ".join(f"{MOUNT_POINT}/{name}" for name in names)
        guest.check(f"cat {files} >>{HERE} && rm {files}", deadline)
    guest.check(f"{{ base64 -d | {{ {command}; }}; }} <{HERE} && rm {HERE}", deadline)
