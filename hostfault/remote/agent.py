"""The harness's side of the agent that runs on the host (:mod:`hostfault.agent.server`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError, ProtocolError

SLICE = 0.3  # seconds between two looks at whether the host still lives


class Stream(Protocol):
    """What a socket and an SSH channel have in common."""

    def settimeout(self, timeout: float | None, /) -> None: ...  # noqa: D102
    def sendall(self, data: bytes, /) -> None: ...  # noqa: D102
    def recv(self, size: int, /) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Agent:
    """Requests to the agent, one at a time.

    Every method raises :class:`ConnectionLostError` if the agent does not answer within
    ``timeout`` seconds or goes away, and :class:`HostfaultError` with its words if the
    operation failed there.
    """

    def __init__(
        self, stream: Stream, alive: Callable[[], None] = lambda: None, timeout: float = 10.0
    ) -> None:
        """``alive`` is asked during every wait, and raises if the host is known to be dead."""
        self._stream = stream
        self._alive = alive
        self._timeout = timeout
        self._buffer = b""
        self._asked = 0

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def hello(self) -> Mapping[str, Any]:
        """Release of the host's kernel, and the agent's directory."""
        return dict(self._ask("hello"))

    def spawn(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], listen: str | None = None
    ) -> int:
        """Start a program on the host; see the agent's own text. Returns its pid."""
        return int(self._ask("spawn", name=name, argv=list(argv), env=dict(env), listen=listen))

    def ended(self, name: str) -> int | None:
        """Exit code of a child, negative for a signal; None while it runs."""
        code = self._ask("ended", name=name)
        return None if code is None else int(code)

    def kill(self, name: str) -> int:
        """Kill a child without a warning; returns its code."""
        return int(self._ask("kill", name=name))

    def read(self, path: str, offset: int = 0, limit: int = 65536) -> tuple[str, int]:
        """Text of a file from ``offset`` (negative: from its end), and where to read on."""
        part = self._ask("read", path=path, offset=offset, limit=limit)
        return part["text"].encode("latin-1").decode(errors="replace"), int(part["next"])

    def make_file(self, path: str, fill: Sequence[int], page_size: int) -> None:
        """Write a file in which page N is full of the byte ``fill[N]``."""
        self._ask("make_file", path=path, fill=list(fill), page_size=page_size)

    def make_directory(self, path: str) -> None:
        """Make a directory."""
        self._ask("make_directory", path=path)

    def write(self, path: str, text: str) -> None:
        """Write a file; what it held is gone."""
        self._ask("write", path=path, text=text)

    def truncate(self, path: str, size: int) -> int:
        """Cut a file; returns the size that it then has."""
        return int(self._ask("truncate", path=path, size=size))

    def stat(self, path: str) -> Mapping[str, int]:
        """Device ("dev"), inode ("ino") and size of a file."""
        return dict(self._ask("stat", path=path))

    def byte(self, path: str, offset: int) -> int | None:
        """One byte of a file; None beyond its end."""
        value = self._ask("byte", path=path, offset=offset)
        return None if value is None else int(value)

    def trace(self) -> list[str]:
        """Begin to count KVM's tracepoints; returns those that the kernel has."""
        return list(self._ask("trace"))

    def histogram(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Counts of one tracepoint since :meth:`trace`: (keys, count) for each set of keys."""
        return [(dict(keys), int(count)) for keys, count in self._ask("histogram", event=event)]

    def sample(
        self, name: str, tails: Sequence[str], watched: int | None = None
    ) -> Mapping[str, Any]:
        """Counts since :meth:`trace`, CPU time of a QEMU's vCPUs, its exit code, ends of logs.

        The counts of the frame ``watched`` are always among them.
        """
        return dict(self._ask("sample", name=name, tails=list(tails), watched=watched))

    def kernel_log(self) -> str:
        """What the host's kernel has logged since :meth:`trace`."""
        return str(self._ask("kernel_log"))

    def _ask(self, op: str, **fields: Any) -> Any:
        self._asked += 1
        request = {"id": self._asked, "op": op, **fields}
        deadline = Deadline(self._timeout, f"the host's agent to answer {op}")
        try:
            self._stream.settimeout(SLICE)
            self._stream.sendall(json.dumps(request).encode() + b"\n")
            reply = self._reply(deadline)
            while reply.get("id") != self._asked:  # late, to a question that was given up
                reply = self._reply(deadline)
        except OSError as error:
            raise ConnectionLostError(f"the host's agent did not answer {op}: {error}") from error
        except ValueError as error:
            raise ProtocolError(f"what the agent answered to {op} is no reply: {error}") from error
        if "error" in reply:
            raise HostfaultError(f"{op} failed on the host: {reply['error']}")
        return reply["ok"]

    def _reply(self, deadline: Deadline) -> dict[str, Any]:
        reply = json.loads(self._line(deadline))
        if not isinstance(reply, dict):
            raise ValueError(f"{reply!r:.80}")
        return reply

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._buffer:
            if deadline.passed():
                raise ConnectionLostError(str(deadline.error()))
            try:
                data = self._stream.recv(65536)
            except TimeoutError:
                self._alive()
            else:
                if not data:
                    raise ConnectionLostError(f"the agent hung up: {deadline.waiting_for}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line
