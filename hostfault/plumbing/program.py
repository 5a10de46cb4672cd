"""How a program of ours ends: trouble is said in a line on standard error, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
    the person asked for what does not exist. ``stopped`` is said after an interrupt.
    """
    try:
        sys.exit(main())
    except HostfaultError as error:
        print(f"{name}: {error}", file=sys.stderr)
        is_usage = usage is not None and isinstance(error, UsageError)
        sys.exit(usage if is_usage else trouble)
    except KeyboardInterrupt:
        print(f"\n{name}: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
