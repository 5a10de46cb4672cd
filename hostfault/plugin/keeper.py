"""Keeps the lab of a pytest session: opened by the first test that needs it, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

import pytest

from hostfault.case.capabilities import ALL
from hostfault.case.record import LabFacts
from hostfault.plugin.progress import Progress
from hostfault.plumbing.errors import HostfaultError, MissingCapabilityError, SetupError, UsageError
from hostfault.plumbing.text import harmless
from hostfault.run.runner import CaseRunner


class LabKeeper:
    """The lab, what it stands on, or the trouble that it met."""

    def __init__(self, make: Callable[[], CaseRunner], progress: Progress) -> None:
        self._make = make
        self._progress = progress
        self._stack = ExitStack()
        self._lab: CaseRunner | None = None
        self._trouble: HostfaultError | None = None
        self._trouble_told = False
        self.facts: LabFacts | None = None

    def prepare(self) -> None:
        """Open the lab, once. Trouble is kept for :meth:`ready`.

        Raises pytest.UsageError if the person asked for what does not exist.
        """
        if self._lab is not None or self._trouble is not None:
            return
        try:
            with self._progress.showing():
                lab = self._make()
                self._stack.enter_context(lab)
                self.facts = lab.facts()
                self._lab = lab
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
        except HostfaultError as error:
            self._trouble = error
        except OSError as error:
            self._trouble = SetupError(f"the set-up met an error of the system: {error}")

    def ready(self) -> tuple[CaseRunner, LabFacts]:
        """The lab. Raises the trouble that it met: in full first, in one line from then on."""
        self.prepare()
        if self._trouble is not None:
            if self._trouble_told and not isinstance(self._trouble, MissingCapabilityError):
                first_line = str(self._trouble).splitlines()[0]
                raise HostfaultError(f"no lab, as reported above: {first_line}")
            self._trouble_told = True
            raise self._trouble
        assert self._lab is not None
        assert self.facts is not None
        return self._lab, self.facts

    def close(self) -> None:
        """End whatever the lab still runs."""
        with self._progress.showing():
            self._stack.close()


@contextmanager
def as_outcome(required: Collection[str]) -> Iterator[None]:
    """Turn harness trouble into pytest's outcome, with its message and no traceback.

    In a fixture that is a skip for a missing capability, and an error for everything else.
    """
    try:
        yield
    except MissingCapabilityError as error:
        skip_or_fail(error, required)
    except HostfaultError as error:
        text = f"harness trouble ({type(error).__name__}): {error}"
        raise pytest.fail.Exception(harmless(text), pytrace=False) from None


def skip_or_fail(error: MissingCapabilityError, required: Collection[str]) -> NoReturn:
    """Skip the running test, or fail it if the capability is required. Always raises."""
    if error.capability in required or ALL in required:
        text = f"--require {error.capability}: {error.reason}"
        raise pytest.fail.Exception(harmless(text), pytrace=False) from None
    raise pytest.skip.Exception(str(error)) from None
