"""A guest whose probe lies: it reports success as soon as it begins to touch."""

from __future__ import annotations

from hostfault.plumbing.deadline import Deadline
from hostfault.remote.shell import Answer, Shell, Stream

PROBE = "/bin/probe "
LIE = '{"step":"outcome","kind":"value","value":0}'


class Liar:
    """A :class:`~hostfault.remote.shell.Shell` that adds the lie to what the probe says."""

    def __init__(self, honest: Shell) -> None:
        self._honest = honest
        self.name = honest.name

    def run(self, command: str, deadline: Deadline) -> Answer:
        """As the honest one."""
        return self._honest.run(command, deadline)

    def check(self, command: str, deadline: Deadline) -> str:
        """As the honest one."""
        return self._honest.check(command, deadline)

    def open(self, command: str, deadline: Deadline) -> Stream:
        """As the honest one, but for the probe."""
        return self._honest.open(lying(command), deadline)

    def close(self) -> None:
        """As the honest one."""
        self._honest.close()


def lying(command: str) -> str:
    """The command with the lie in what it says; only the probe lies."""
    if not command.startswith(PROBE):
        return command
    repeat = 'echo "$said"; case "$said" in *touching*) echo '
    return f"{command} | while IFS= read -r said; do {repeat}'{LIE}';; esac; done"
