"""How a program of ours ends: trouble is said in a line on standard error, never as a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from hostfault.plumbing.errors import HostfaultError, UsageError

INTERRUPTED = 130  # exit code: what a shell makes of SIGINT


def end_with(
    main: Callable[[], int],
    name: str,
    *,
    trouble: int,
    usage: int | None = None,
    stopped: str = "stopped",
) -> NoReturn:
    """Run ``main`` and exit with its code.

    For a :class:`HostfaultError` the exit code is ``trouble``, or ``usage`` if that is given and
    the person asked for what does not exist. ``stopped`` is said after an interrupt, which
    SIGTERM and SIGHUP are, too.
    """
    try:
        with torn_down_by_signals():
            code = main()
        sys.exit(code)
    except HostfaultError as error:
        print(f"{name}: {error}", file=sys.stderr)
        is_usage = usage is not None and isinstance(error, UsageError)
        sys.exit(usage if is_usage else trouble)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def torn_down_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP tear down what runs, as Ctrl-C does; a second one changes nothing."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup(1)
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
