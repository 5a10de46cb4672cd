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
    """Have a command read data, which lie in the share for that long, as text."""
    file = f"{MOUNT_POINT}/{NAME}"
    agent.write(f"{SHARED}/{NAME}", base64.encodebytes(data).decode())
    guest.check(f"base64 -d <{file} | {{ {command}; }} && rm {file}", deadline)
