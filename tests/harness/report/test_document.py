"""Tables that a program keeps up to date in a page of docs/."""

from __future__ import annotations

import pytest

from hostfault.plumbing.errors import SetupError
from hostfault.report.document import fill


def test_tables_are_put_where_the_document_wants_them() -> None:
    text = "before\n<!-- table a -->\nold\n<!-- end -->\nafter\n"
    filled = fill(text, {"a": "| new |"})
    assert filled == "before\n<!-- table a -->\n| new |\n<!-- end -->\nafter\n"
    assert fill(filled, {"a": "| new |"}) == filled


def test_a_document_that_wants_an_unknown_table_is_an_error() -> None:
    with pytest.raises(SetupError, match="'nonsense'; known are slots"):
        fill("<!-- table nonsense -->\n<!-- end -->", {"slots": ""})
