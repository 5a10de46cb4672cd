"""The part of the agent that does something to the memory of a child: a QEMU's, a guest's."""

from __future__ import annotations

from pathlib import Path

from hostfault.agent.programs import Programs
from hostfault.agent.userfault import (
    UFFD_FEATURE_POISON,
    PageServer,
    Userfault,
    forget_pages,
    is_lacking,
)


class ChildMemory(Programs):
    """Every public method is an operation of the agent's."""

    def __init__(self, directory: Path, *, expendable: bool) -> None:
        """``expendable``: the machine is the harness's own, and nobody needs it afterwards."""
        super().__init__(directory)
        self._expendable = expendable
        self._servers: list[PageServer] = []

    def may_hurt(self) -> bool:
        """Whether this machine may be harmed."""
        return self._expendable

    def poison_mapping(self, name: str, address: int, length: int) -> bool:
        """Poison a range of a child's that has no page yet, by userfaultfd; False: too old."""
        self._check_may_hurt()
        try:
            userfault = Userfault(self._children[name].pid, address, length, UFFD_FEATURE_POISON)
        except OSError as error:
            if is_lacking(error):
                return False
            raise
        try:
            userfault.poison()
        finally:
            userfault.close()
        return True

    def forget_mapping(self, name: str, address: int, length: int) -> None:
        """Take a range out of a child's page tables, poison included."""
        self._check_may_hurt()
        forget_pages(self._children[name].pid, address, length)

    def serve_mapping(self, name: str, address: int, length: int, manner: str) -> None:
        """Have a server bring the pages of a child's range; see :class:`PageServer`."""
        self._check_may_hurt()
        userfault = Userfault(self._children[name].pid, address, length)
        with self._cap.idle:
            self._servers.append(PageServer(userfault, manner))

    def continue_servers(self) -> None:
        """Let servers go on that hang."""
        for server in self._servers:
            server.go_on()

    def _unanswered(self) -> int | None:
        """How many page faults wait for servers that live; None: there is no such server."""
        waiting = [count for each in self._servers if (count := each.unanswered()) is not None]
        return sum(waiting) if waiting else None

    def _end_servers(self) -> None:
        while self._servers:
            self._servers.pop().close()

    def _check_may_hurt(self) -> None:
        if not self._expendable:
            raise PermissionError("this machine is not to be hurt")
