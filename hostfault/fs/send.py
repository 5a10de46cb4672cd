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

    In pieces: the agent answers nothing else while it writes one.
    """
    text = base64.encodebytes(data).decode()
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
    names = [f"{NAME}-{number}" for number in range(len(pieces))]
    for name, piece in zip(names, pieces, strict=True):
        agent.write(f"{SHARED}/{name}", piece)
    files = " ".join(f"{MOUNT_POINT}/{name}" for name in names)
    guest.check(f"cat {files} | base64 -d | {{ {command}; }} && rm {files}", deadline)
