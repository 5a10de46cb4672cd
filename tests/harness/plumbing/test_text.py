"""What a guest writes cannot steer who reads it."""

from __future__ import annotations

import pytest

from hostfault.plumbing.text import harmless


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("plain\ttext\nof two lines", "plain\ttext\nof two lines"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\x9b2J", r"a\x9b2J"),
        ("over\rwritten", r"over\x0dwritten"),
        ("one\r\ntwo", "one\ntwo"),
        ("x\n::add-mask::secret\n  ::error::y", "x\n\\::add-mask::secret\n  \\::error::y"),
        ("##vso[task.setvariable]x", "\\##vso[task.setvariable]x"),
        ("std::string", "std::string"),
        ("\u202egnp.exe", r"\x202egnp.exe"),
    ],
)
def test_it_is_spelt_out_and_nothing_obeys_it(written: str, read: str) -> None:
    assert harmless(written) == read
