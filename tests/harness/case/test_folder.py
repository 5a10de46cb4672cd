"""The table of a test folder's files in docs/debugging.md is the one in the code."""

from __future__ import annotations

import re
from pathlib import Path

from hostfault.backing import BACKINGS
from hostfault.case.folder import FILES

PAGE = Path(__file__).parents[3] / "docs" / "debugging.md"
ROW = re.compile(r"^\| `([^`]+)` \| (.+) \|$")

# What two backings have in common is one entry.
OF_BACKINGS = list(dict.fromkeys(e for backing in BACKINGS for e in backing.logs.items()))


def test_the_page_lists_every_file_in_order_with_its_meaning() -> None:
    section = PAGE.read_text().partition("## What a test leaves")[2].partition("\n## ")[0]
    rows = [found.groups() for line in section.splitlines() if (found := ROW.match(line))]
    assert rows == [*FILES.items(), *OF_BACKINGS]


def test_no_backing_takes_a_name_that_is_in_use() -> None:
    names = [*FILES, *(name for name, _ in OF_BACKINGS)]
    assert len(names) == len(set(names))
