"""A plugin of pytest for ci/chaos: kills a process inside the emulated host, once, amid a case.

``pytest -p hostfault.nightly.inside``, with what to kill in the environment. A killer on the host
does it, since the harness is busy with the case: a shell, the agent's child as QEMU is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from hostfault.case.model import Scenario
from hostfault.case.settings import Settings
from hostfault.host.testbed import Testbed
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent
from hostfault.run.lab import Lab

VARIABLE = "HOSTFAULT_CHAOS"
NAME = "chaos"  # of the child
# How a shell whose parent is the agent, and which may have nothing but itself, ends them.
VICTIMS = {
    "agent": 'kill -s KILL "$PPID"',
    "guest-qemu": """
        for pid in $(cat "/proc/$PPID/task/$PPID/children"); do
            [ "$pid" != $$ ] || continue
            case $(tr "\\0" " " <"/proc/$pid/cmdline") in
            *qemu-system*) kill -s KILL "$pid" ;;
            esac
        done""",
}


@dataclass(frozen=True)
class Order:
    """Whom to kill, and when."""

    kind: str  # one of VICTIMS
    case: int  # the how many-th of a run, from 1 on
    after: float  # seconds from when its guest is there
    done: str  # a file that is made when it was done; then nobody is killed any more

    def to_environment(self) -> dict[str, str]:
        """What tells the plugin."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Order | None:
        """What the plugin was told; None for nothing."""
        words = os.environ.get(VARIABLE)
        return None if words is None else cls(**json.loads(words))


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_hostfault_lab(settings: Settings) -> Lab | None:
    """A lab with a killer in it, where there is an order."""
    order = Order.from_environment()
    return None if order is None else KillingLab(settings, order)


class KillingLab(Lab):
    """Runs cases, and sends the killer into one of them."""

    def __init__(self, settings: Settings, order: Order) -> None:
        super().__init__(settings)
        self._order = order
        self._cases = 0

    @contextmanager
    def testbed(self, scenario: Scenario, folder: Path) -> Iterator[Testbed]:
        """As it is, with a killer about if it is this one's turn."""
        with super().testbed(scenario, folder) as testbed:
            self._cases += 1
            order = self._order
            if self._cases != order.case or Path(order.done).exists():
                yield testbed
                return
            send(testbed.agent, order)
            try:
                yield testbed
            finally:
                if was_there(testbed.agent, order):
                    Path(order.done).touch()


def send(agent: Agent, order: Order) -> None:
    """Start the killer; it ends by itself."""
    script = f"sleep {order.after:.2f}; {VICTIMS[order.kind]}"
    agent.spawn(NAME, ["sh", "-c", script], {"PATH": os.defpath})


def was_there(agent: Agent, order: Order) -> bool:
    """Whether the killer did its work: it has ended, and well, or has ended who would say so."""
    try:
        return agent.ended(NAME) == 0
    except HostfaultError:
        return order.kind == "agent"
