"""Tables in a page of docs/: from ``<!-- table NAME -->`` to ``<!-- end -->`` is a program's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hostfault.plumbing.errors import SetupError


def fill(text: str, known: Mapping[str, str]) -> str:
    """Put the tables into a document. Raises :class:`SetupError` for one that is unknown."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name not in known:
            raise SetupError(f"the document wants a table {name!r}; known are {', '.join(known)}")
        return f"<!-- table {name} -->\n{known[name]}\n<!-- end -->"

    return re.sub(r"<!-- table (\S+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)
