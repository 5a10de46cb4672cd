"""Whether a guest answers over SSH: a loop in its shell that says again what it is told.

The first answer of a fresh fork takes a tenth of a second or two. So one question is asked early,
for nothing but that, and the one that counts long before its answer is needed.
"""

from __future__ import annotations

from hostfault.plumbing.deadline import Deadline, now
from hostfault.plumbing.errors import ConnectionLostError
from hostfault.remote.channel import Channel
from hostfault.remote.shell import Shell

ALIVE_FOR = 2.0  # seconds after which a question says nothing of the present any more
PATIENCE = 5.0  # seconds for one answer
_LOOP = "while read -r word; do echo $word; done"


class Liveness:
    """Questions to one guest."""

    def __init__(self, guest: Shell, slowness: float = 1.0) -> None:
        """Raises :class:`ConnectionLostError` if the guest takes no command.

        ``slowness`` is how many times longer than usual it may take.
        """
        self._patience = PATIENCE * slowness
        deadline = Deadline(self._patience, "the guest to take a command")
        self._channel = Channel("guest", guest.open(_LOOP, deadline))
        self._questions = 0
        self._asked = 0.0  # when the last one was

    def ask(self) -> None:
        """Ask, and do not wait; raises :class:`ConnectionLostError`."""
        self._questions += 1
        self._asked = now()
        self._channel.say(self._word())

    def answers(self) -> bool:
        """Whether the guest answers a question that is not old; asks where that is needed."""
        try:
            if now() - self._asked > ALIVE_FOR:
                self.ask()
            return self._has_answered(Deadline(self._patience, "the guest to answer"))
        except ConnectionLostError:
            return False

    def _word(self) -> str:
        return f"hostfault-question-{self._questions}"

    def _has_answered(self, deadline: Deadline) -> bool:
        goes_on = True
        while self._word() not in self._channel.text and goes_on and not deadline.passed():
            goes_on = self._channel.listen(min(1.0, deadline.left()))
        return self._word() in self._channel.text
