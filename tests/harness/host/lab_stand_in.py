"""An SSH server of this machine that runs what it is asked to, as a machine of a lab does.

Its python3 is a stand-in that says of the machine what a test wants; all else is real.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

GOOD_KVM = "lease = lambda: os.open('/dev/null', os.O_RDWR)"


def new_key(path: Path) -> paramiko.Ed25519Key:
    """A key of its own, as a file and to be used."""
    private = Ed25519PrivateKey.generate()
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    return paramiko.Ed25519Key(filename=str(path))


@dataclass
class LabMachine(paramiko.ServerInterface):
    """The server; ``patch`` is Python that runs in the keeper before its main()."""

    folder: Path
    patch: str = GOOD_KVM
    python: bool = True  # whether it has one
    boot_id: str = ""  # "" for this machine's
    port: int = 0
    transports: list[paramiko.Transport] = field(default_factory=list)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        self.folder.mkdir()
        self.key = new_key(self.folder / "host")
        self.client_key = new_key(self.folder / "client")
        self._programs()
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _programs(self) -> None:
        """What its commands find in their PATH."""
        self.bin = self.folder / "bin"
        self.bin.mkdir()
        for name in ("env", "rm", "sh"):
            (self.bin / name).symlink_to(f"/usr/bin/{name}")
        stand_in = (
            f"import sys; new = {self.patch!r} + '\\nsys.exit(main'; words = sys.argv[1:]; "
            "program = words[2].replace('; sys.exit(main', '\\n' + new); "
            f"import os; os.execv({sys.executable!r}, [{sys.executable!r}, '-I', '-c', program])"
        )
        line = f'exec {sys.executable} -I -c {shlex.quote(stand_in)} "$@"\n'
        cat = f"[ -n '{self.boot_id}' ] && echo '{self.boot_id}' || exec /usr/bin/cat \"$@\"\n"
        programs = {"cat": cat, **({"python3": line} if self.python else {})}
        for name, text in programs.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}")
            (self.bin / name).chmod(0o755)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                transport = paramiko.Transport(peer)
                self.transports.append(transport)
                transport.add_server_key(self.key)
                transport.start_server(event=threading.Event(), server=self)  # does not wait

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = key == self.client_key
        return paramiko.common.AUTH_SUCCESSFUL if good else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._run, args=(channel, command.decode()), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        child = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env={"PATH": str(self.bin), "TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.children.append(child)
        threading.Thread(target=_pump_in, args=(channel, child), daemon=True).start()
        assert child.stdout is not None
        assert child.stderr is not None
        with suppress(OSError, EOFError):
            while data := os.read(child.stdout.fileno(), 1 << 16):
                channel.sendall(data)
            channel.sendall_stderr(child.stderr.read())
        with suppress(OSError, EOFError, paramiko.SSHException):
            channel.send_exit_status(child.wait(60))
            channel.close()

    def left(self) -> list[str]:
        """What of ours lies in its temporary directory."""
        return sorted(path.name for path in (self.folder / "tmp").glob("hostfault-*"))

    def hang_up(self) -> None:
        """Break every connection, as a network does."""
        for transport in self.transports:
            transport.close()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept
        self._listener.close()
        self.hang_up()
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(30)


def _pump_in(channel: paramiko.Channel, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    with suppress(OSError, EOFError):
        while data := channel.recv(1 << 16):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(child.stdin.fileno(), rest) :]
    child.stdin.close()
