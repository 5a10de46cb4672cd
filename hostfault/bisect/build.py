"""The program that builds the kernel of one step: ``python -m hostfault.bisect.build KERNEL FILE``.

A child of the step, so that a build can be ended from outside. What came of it goes into FILE as
JSON, because an exit code cannot tell a commit that does not build from a machine that cannot
build anything: ``{"kernel", "how"}``, ``{"does_not_build"}`` or ``{"trouble"}``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

from hostfault.cache import default_cache
from hostfault.errors import HostfaultError, LaunchError
from hostfault.kernel import resolve
from hostfault.model import Kernel, to_json

# In the compiler's output, and no fault of what it compiles.
_NOT_THE_SOURCE = re.compile(r"Killed signal|internal compiler error|No space left on device")


def main(kernel: str, answer: Path) -> None:
    """Build a kernel and write down what came of it."""
    cache = default_cache()
    try:
        built = resolve(kernel, cache)
        said = {"kernel": to_json(built), "how": how(built)}
    except HostfaultError as error:
        said = {blame(error): str(error)}
    finally:
        cache.close()
    answer.write_text(json.dumps(said, indent=2) + "\n")


def how(kernel: Kernel) -> str:
    """In which of the two ways a kernel was built, for people."""
    return "KVM only" if (kernel.modules / "updates").is_dir() else "whole kernel"


def blame(error: HostfaultError) -> str:
    """Whether it is the commit that fails to build, or this machine that fails to build it.

    Only make's own failure is the commit's.
    """
    if (
        isinstance(error, LaunchError)
        and error.code is not None
        and error.argv[:1] == ("make",)
        and not _NOT_THE_SOURCE.search(error.log_tail)
    ):
        return "does_not_build"
    return "trouble"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main(sys.argv[1], Path(sys.argv[2]))
