"""SSH to a guest by clients that run on its host, which the agent carries to us.

The clients log in ahead of time and wait for one command each. In an emulated host they are part
of the snapshot, so that a fork of it has its connections to the guest at once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError, HostfaultError
from hostfault.remote.agent import SLICE, Agent
from hostfault.remote.shell import Answer

SPARES = 4  # connections that are logged in ahead of time
OUTPUT_LIMIT = 1 << 20  # bytes of a command's output that are kept: the guest is untrusted
_READY = b"hostfault-ready\n"
_WAIT_FOR_COMMAND = 'echo hostfault-ready; IFS= read -r line && eval "$line" 2>&1'


@dataclass(frozen=True)
class Client:
    """How an SSH client is started on the host: the guest's command is the last word."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


class CarriedShell:
    """A :class:`~hostfault.remote.shell.Shell` of a guest."""

    name = "guest"

    def __init__(self, agent: Agent, client: Client, spares: Sequence[str] = ()) -> None:
        self._agent = agent
        self._client = client
        self._spares = list(spares)

    @property
    def spares(self) -> tuple[str, ...]:
        """The connections that no command has taken yet, for a shell of the same guest later."""
        return tuple(self._spares)

    def log_in(
        self,
        deadline: Deadline,
        alive: Callable[[], None] = lambda: None,
        spares: int = SPARES,
    ) -> None:
        """Make spare connections until there are so many.

        Raises :class:`~hostfault.plumbing.errors.DeadlineError`, and whatever ``alive`` raises,
        which is asked whenever a connection fails.
        """
        streams = [self._connect() for _ in range(spares - len(self._spares))]
        for stream in streams:
            self._spares.append(self._logged_in(stream, deadline, alive).name)

    def _logged_in(
        self,
        stream: CarriedStream,
        deadline: Deadline,
        alive: Callable[[], None] = lambda: None,
    ) -> CarriedStream:
        """A connection that is ready; one that fails, as the guest is not yet, is made anew."""
        while not stream.ready:
            if not stream.wait_ready(deadline):
                alive()
                deadline.saw(stream.said)
                deadline.check()
                stream = self._connect()
        return stream

    def run(self, command: str, deadline: Deadline) -> Answer:
        """See :class:`~hostfault.remote.shell.Shell`."""
        mark = f"hostfault-code-{uuid.uuid4().hex}"
        with self.open(f"( {command} ); echo {mark} $?", deadline) as stream:
            text = self._read_all(stream, deadline)
        ended = re.search(rf"{mark} (\d{{1,3}})\n?\Z", text)
        if ended is None:
            raise ConnectionLostError(f"guest: no answer to {command!r}; it said {text[-400:]!r}")
        return Answer(int(ended[1]), text[: ended.start()])

    def check(self, command: str, deadline: Deadline) -> str:
        """See :class:`~hostfault.remote.shell.Shell`."""
        answer = self.run(command, deadline)
        if answer.code != 0:
            raise HostfaultError(
                f"guest: {command!r} failed with {answer.code}: {answer.text.strip()}"
            )
        return answer.text

    def open(self, command: str, deadline: Deadline) -> CarriedStream:
        """See :class:`~hostfault.remote.shell.Shell`; a command is one line."""
        if "\n" in command:
            raise ValueError(f"a command is one line: {command!r}")
        if self._spares:
            stream = CarriedStream(self._agent, self._spares.pop(0), ready=True)
        else:
            stream = self._logged_in(self._connect(), deadline)
        try:
            stream.sendall(command.encode() + b"\n")
        except OSError as error:
            words = self._agent.hear(stream.name, 0.0)
            raise ConnectionLostError(f"guest: {error}; the client said {words!r}") from error
        return stream

    def close(self) -> None:
        """Nothing: the clients end with the host, or with the agent."""

    def _connect(self) -> CarriedStream:
        name = f"ssh-{uuid.uuid4().hex[:8]}"
        self._agent.open(name, [*self._client.argv, _WAIT_FOR_COMMAND], self._client.env)
        return CarriedStream(self._agent, name)

    def _read_all(self, stream: CarriedStream, deadline: Deadline) -> str:
        kept = b""
        while True:
            if deadline.passed():
                raise ConnectionLostError(f"guest: {deadline.error()}")
            stream.settimeout(min(SLICE, max(0.001, deadline.left())))
            try:
                data = stream.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return kept.decode(errors="replace")
            kept = (kept + data)[-OUTPUT_LIMIT:]


@dataclass
class CarriedStream:
    """One client, as a :class:`~hostfault.remote.shell.Stream`; a context manager that ends it."""

    agent: Agent
    name: str
    ready: bool = False  # it is logged in and waits for its command
    said: bytes = b""  # that nobody has received yet
    timeout: float | None = field(default=None)  # seconds; None waits for ever

    def __enter__(self) -> CarriedStream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def wait_ready(self, deadline: Deadline) -> bool:
        """Wait a little for the client to be logged in; False if it has ended instead."""
        data = self.agent.hear(self.name, min(SLICE, max(0.001, deadline.left())))
        self.said = (self.said + (data or b""))[-OUTPUT_LIMIT:]
        if _READY in self.said:
            self.said = self.said.partition(_READY)[2]
            self.ready = True
        elif deadline.passed():
            raise deadline.error()
        return data is not None

    def settimeout(self, timeout: float | None, /) -> None:
        """How long :meth:`recv` may wait, in seconds."""
        self.timeout = timeout

    def sendall(self, data: bytes, /) -> None:
        """Write to the program in the guest."""
        try:
            self.agent.say(self.name, data)
        except ConnectionLostError:
            raise
        except HostfaultError as error:  # the client is gone: its pipe is closed
            raise OSError(str(error)) from error

    def recv(self, size: int, /) -> bytes:
        """What it has said; empty once it has said its last. Raises TimeoutError."""
        until = None if self.timeout is None else now() + self.timeout
        while not self.said:
            left = SLICE if until is None else max(0.0, until - now())
            data = self.agent.hear(self.name, min(SLICE, left))
            if data is None:
                return b""
            self.said = data
            if not data and until is not None and now() >= until:
                raise TimeoutError
        data, self.said = self.said[:size], self.said[size:]
        return data

    def close(self) -> None:
        """End the client, and with it the command."""
        self.agent.hang_up(self.name)
