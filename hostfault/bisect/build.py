"""The program that builds the kernel of one step: ``python -m hostfault.bisect.build KERNEL FILE``.

A child of the step, so that a build can be ended from outside. What came of it goes into FILE as
JSON, because an exit code cannot tell a commit that does not build from a machine that cannot
build anything: ``{"kernel", "how"}``, ``{"does_not_build"}`` or ``{"trouble"}``.

With ``--compile`` before the two, KERNEL is a packaged one, and its own KVM is compiled whatever
was compiled before: the proof that this machine can. FILE then has ``{"compiled"}`` or the same
two troubles.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hostfault.case.model import Kernel, to_json
from hostfault.kernel import resolve
from hostfault.kernel.buildroot import build_root, suite_for
from hostfault.kernel.catalog import load
from hostfault.kernel.kvm_only import compile_modules
from hostfault.kernel.packaged import packaged_base
from hostfault.plumbing.cache import Cache, default_cache
from hostfault.plumbing.errors import HostfaultError, LaunchError
from hostfault.plumbing.packages import run_tool

MAKE_FAILED = 2  # make's exit code for a recipe that failed; more than 128 if it was killed itself
COMPILED = "cross-checks"  # kind of cache entry
# In the output of make, and no fault of what is compiled.
_NOT_THE_SOURCE = re.compile(
    r"Killed signal|\[Killed\]|\] Killed|Error 137|internal compiler error|ccache: error"
    r"|out of memory|memory exhausted|Cannot allocate memory|No space left on device"
)
_SOURCE_LINE = re.compile(r"^\s+(?:\d+ )?\|.*$", re.MULTILINE)  # the compiler quotes it


def command(words: Sequence[str]) -> None:
    """Do what the command line says."""
    *options, kernel, answer = words
    main(kernel, Path(answer), afresh=options == ["--compile"])


def main(kernel: str, answer: Path, *, afresh: bool = False) -> None:
    """Build a kernel and write down what came of it."""
    cache = default_cache()
    try:
        said = compile_afresh(kernel, cache) if afresh else make(kernel, cache)
    except HostfaultError as error:
        said = {blame(error): str(error)}
    finally:
        cache.close()
    answer.write_text(json.dumps(said, indent=2) + "\n")


def make(kernel: str, cache: Cache) -> Mapping[str, Any]:
    """Build a kernel, or take it from the cache."""
    built = resolve(kernel, cache)
    return {"kernel": to_json(built), "how": how(built)}


def compile_afresh(name: str, cache: Cache) -> Mapping[str, Any]:
    """Compile a packaged kernel's own KVM; neither the cache nor ccache's directory has it."""
    entry = load()[name]
    base = packaged_base(entry, cache)
    root = build_root(cache, suite_for(entry.release))

    def compile_once(place: Path) -> None:
        tree = place / "src"
        run_tool(["cp", "-a", str(base.tree), str(tree)], what="copying the source")
        compile_modules(tree, replace(root, ccache=place / "ccache"), base.release)

    cache.release(cache.obtain(COMPILED, uuid.uuid4().hex, compile_once))
    cache.prune(COMPILED, 0)
    return {"compiled": base.release}


def how(kernel: Kernel) -> str:
    """In which of the two ways a kernel was built, for people."""
    return "KVM only" if (kernel.modules / "updates").is_dir() else "whole kernel"


def blame(error: HostfaultError) -> str:
    """Whether it is the commit that fails to build, or this machine that fails to build it.

    Only make's own failure is the commit's.
    """
    if (
        isinstance(error, LaunchError)
        and error.code == MAKE_FAILED
        and error.argv[:1] == ("make",)
        and not _NOT_THE_SOURCE.search(_SOURCE_LINE.sub("", error.log_tail))
    ):
        return "does_not_build"
    return "trouble"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command(sys.argv[1:])
