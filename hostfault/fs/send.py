"""Files into a guest, through its shell."""

from __future__ import annotations

import base64
import gzip
import shlex

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.remote.shell import Shell

DONE = "HOSTFAULT-SENT"
END = "HOSTFAULT-END"


def send_program(guest: Shell, data: bytes, path: str, deadline: Deadline) -> None:
    """Make a program of ``data`` in the guest.

    Raises :class:`ConnectionLostError`, or :class:`HostfaultError` with what the guest said.
    """
    where = shlex.quote(path)
    _send(guest, gzip.compress(data, 1), f"gunzip -c >{where} && chmod 755 {where}", deadline)


def send_tree(guest: Shell, archive: bytes, directory: str, deadline: Deadline) -> None:
    """Unpack a gzipped tar archive below a directory of the guest. Raises as above."""
    where = shlex.quote(directory)
    _send(guest, archive, f"mkdir -p {where} && gunzip -c | tar -xf - -C {where}", deadline)


def _send(guest: Shell, data: bytes, command: str, deadline: Deadline) -> None:
    """Have a command read data: as text, with an end of its own, for the stream can't be closed."""
    reader = f"sed -n '/^{END}$/q;p' | base64 -d | {{ {command}; }}"
    stream = guest.open(f"{{ {reader}; }} 2>&1 && echo {DONE}", deadline)
    said = b""
    try:
        stream.sendall(base64.encodebytes(data) + f"{END}\n".encode())
        while DONE.encode() not in said:
            stream.settimeout(max(0.1, deadline.left()))
            part = stream.recv(4096)
            if not part:
                break
            said = (said + part)[-4096:]
            deadline.check()
    except OSError as error:
        raise ConnectionLostError(f"{guest.name}: {command!r}: {error}") from error
    finally:
        stream.close()
    if DONE.encode() not in said:
        words = said.decode(errors="replace").strip()
        raise HostfaultError(f"{guest.name}: {command!r} failed: {words}")
