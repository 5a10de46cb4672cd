"""The part of the agent that starts programs on the host, talks with them, and looks into them."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from hostfault.agent.cap import Cap
from hostfault.agent.children import guard, in_child
from hostfault.agent.modules import build_id_of_program
from hostfault.agent.procstat import huge_in, state_of

LONGEST_WAIT = 1.0  # seconds: nothing else is answered meanwhile


class Programs:
    """Children by name. Every public method is an operation of the agent's."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guards: list[subprocess.Popen[bytes]] = []
        self._cap = Cap(directory)

    def open(self, name: str, argv: list[str], env: dict[str, str]) -> int:
        """Start a child that one talks with: see :meth:`say` and :meth:`hear`. Returns its pid."""
        with self._cap.idle:
            child = subprocess.Popen(
                argv,
                env=env,
                cwd=self._directory,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
                preexec_fn=in_child,
            )
        assert child.stdin is not None
        assert child.stdout is not None
        os.set_blocking(child.stdin.fileno(), False)
        os.set_blocking(child.stdout.fileno(), False)
        self._children[name] = child
        return child.pid

    def say(self, name: str, text: str) -> None:
        """Write to a child that was opened; a pipe that it does not empty is an error."""
        stream = self._children[name].stdin
        assert stream is not None
        data = text.encode("latin-1")
        if os.write(stream.fileno(), data) != len(data):
            raise BlockingIOError(f"{name} does not take what it is told")

    def hear(self, name: str, seconds: float = 0.0) -> str | None:
        """What a child that was opened has said, awaited for ``seconds`` at most.

        Empty if it has said nothing, None once it has said its last.
        """
        stream = self._children[name].stdout
        assert stream is not None
        readable, _, _ = select.select([stream], [], [], min(seconds, LONGEST_WAIT))
        if not readable:
            return ""
        return os.read(stream.fileno(), 65536).decode("latin-1") or None

    def hang_up(self, name: str) -> None:
        """Kill a child that was opened; it is reaped when it is asked about, or at the end."""
        self._children[name].kill()

    def mapped_at(self, name: str, address: int) -> list[Any] | None:
        """File and offset that a child has mapped at an address; None for no file (proc(5))."""
        for line in Path(f"/proc/{self._children[name].pid}/maps").read_text().splitlines():
            extent, _, offset, _, inode, *path = line.split(maxsplit=5)
            begin, end = (int(each, 16) for each in extent.split("-"))
            if begin <= address < end and int(inode):
                file = Path(path[0])
                inside = file.is_relative_to(self._directory)
                name_of = str(file.relative_to(self._directory)) if inside else str(file)
                return [name_of, int(offset, 16) + address - begin]
        return None

    def huge_in(self, name: str, address: int) -> list[int]:
        """Bytes of a child's mapping at an address that have a page, and those of huge pages."""
        return list(huge_in(Path(f"/proc/{self._children[name].pid}/smaps").read_text(), address))

    def listens(self, path: str) -> bool:
        """Whether somebody listens on a Unix socket (/proc/net/unix, flag __SO_ACCEPTCON)."""
        wanted = str(self._path(path))
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[7] == wanted and int(fields[3], 16) & 0x10000:
                return True
        return False

    def spawn(
        self,
        name: str,
        argv: list[str],
        env: dict[str, str],
        listen: str | None = None,
        changes_user: bool = False,
    ) -> int:
        """Start a child; its output goes to ``name.log``. Returns its pid.

        One that ``changes_user`` by itself gets a guard, as it forgets that it ends with us.

        ``env`` is its whole environment. On a local host the agent's own may hold a CI runner's
        secrets, and what is started here talks to a guest.

        With ``listen``, a socket listening at that path is opened first and handed to the child:
        ``{fd}`` in ``argv`` becomes its descriptor, so that nobody need poll for the path.
        """
        listener = None
        if listen is not None:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(listen)
            listener.listen(1)
            argv = [word.replace("{fd}", str(listener.fileno())) for word in argv]
        with self._cap.idle, self._log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                argv,
                env=env,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if listener is None else (listener.fileno(),),
                start_new_session=True,
                preexec_fn=in_child,
            )
        if listener is not None:
            listener.close()
        if changes_user:
            self._guards.append(guard(self._children[name].pid))
        return self._children[name].pid

    def program_of(self, name: str, program: str) -> str:
        """The build id of what a child runs, see :func:`build_id_of_program`."""
        return build_id_of_program(self._children[name].pid, program)

    def ended(self, name: str) -> int | None:
        """Exit code of a child, negative for a signal; None while it runs."""
        return self._children[name].poll()

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """End a child by a signal, without a warning; returns its code."""
        self._children[name].send_signal(number)
        return self._children[name].wait(10)

    def kill_for_good(self, name: str) -> None:
        """End a child, and forget that there was one; its log stays."""
        self.kill(name)
        del self._children[name]

    def stop_child(self, name: str) -> str:
        """Stop a child; returns its state once it has changed (waitid(2), proc(5))."""
        child = self._children[name]
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return state_of(child.pid)

    def continue_child(self, name: str) -> None:
        """Undo :meth:`stop_child`."""
        self._children[name].send_signal(signal.SIGCONT)

    def peek(self, name: str, address: int) -> int | None:
        """One byte of a child's memory, None for none (proc(5), /proc/PID/mem)."""
        with Path(f"/proc/{self._children[name].pid}/mem").open("rb", buffering=0) as memory:
            try:
                return os.pread(memory.fileno(), 1, address)[0]
            except OSError as error:
                if error.errno not in (errno.EIO, errno.EFAULT):
                    raise
                return None

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _path(self, path: str) -> Path:
        return self._directory / path  # an absolute path stays as it is
