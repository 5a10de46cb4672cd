"""``results.ktap``: version 1 of the kernel's test protocol (Documentation/dev-tools/ktap.rst).

Nested as the night is: kernels, in them the test functions, in them the cases. As kselftest does
it, an expected failure is ``ok`` with the directive XFAIL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hostfault.nightly.digest import Digest
from hostfault.nightly.results import Result, Status, in_order, short

_INDENT = "  "
_DIRECTIVES = {
    Status.KNOWN: "XFAIL",
    Status.SKIPPED: "SKIP",
    Status.TIMEOUT: "TIMEOUT",
    Status.HARNESS: "ERROR",
    Status.BROKEN: "ERROR",
}
_OK = (Status.PASSED, Status.KNOWN, Status.SKIPPED)


def text(digest: Digest) -> str:
    """The whole file."""
    cells = list(digest.cells.values())
    return "\n".join(_level(cells, [_kernel, _function], 0)) + "\n"


def _kernel(result: Result) -> str:
    return result.kernel


def _function(result: Result) -> str:
    return short(result.case).partition(" ")[0]


def _level(cells: Sequence[Result], group_by: Sequence[object], depth: int) -> Iterator[str]:
    """One level with its version line and its plan; the cases are the last."""
    pad = _INDENT * depth
    yield f"{pad}KTAP version 1"
    if not group_by:
        yield f"{pad}1..{len(cells)}"
        for number, result in enumerate(cells, start=1):
            yield from _case(number, result, pad)
        return
    name_of, *deeper = group_by
    assert callable(name_of)
    names = in_order([name_of(result) for result in cells])
    yield f"{pad}1..{len(names)}"
    for number, name in enumerate(names, start=1):
        of_name = [result for result in cells if name_of(result) == name]
        inner = list(_level(of_name, deeper, depth + 1))
        yield inner[0]
        yield f"{pad}{_INDENT}# Subtest: {_name(name)}"
        yield from inner[1:]
        good = all(result.outcome in _OK for result in of_name)
        yield f"{pad}{'ok' if good else 'not ok'} {number} {_name(name)}"


def _case(number: int, result: Result, pad: str) -> Iterator[str]:
    name = _name(short(result.case).partition(" ")[2] or short(result.case))
    line = f"{pad}{'ok' if result.outcome in _OK else 'not ok'} {number} {name}"
    directive = _DIRECTIVES.get(result.outcome)
    if result.summary or result.verdict:
        # A diagnostic line stands before the result that it belongs to.
        yield f"{pad}# {name}: {_words(' '.join(filter(None, (result.verdict, result.summary))))}"
    yield f"{line} # {directive} {_words(result.reason or result.verdict)}" if directive else line


def _name(said: str) -> str:
    """A name without what the protocol gives a meaning."""
    return re.sub(r"[^\w.+/:=@-]+", "_", said) or "_"


def _words(said: str) -> str:
    """One line without a ``#``, which would begin a directive."""
    return " ".join(re.sub(r"[^\x20-\x7e]|#", " ", said).split())[:300]
