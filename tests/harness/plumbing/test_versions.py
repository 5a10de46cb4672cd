"""Kernel versions as numbers, and ranges of them."""

from __future__ import annotations

import pytest

from hostfault.plumbing.versions import Range, range_of, version_of


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("7.3.4+deb13-cloud-amd64", (7, 3, 4)),
        ("6.1.0-50-cloud-amd64", (6, 1, 0)),
        ("7.4.0-rc3", (7, 4, 0)),
        ("6.12", (6, 12)),
    ],
)
def test_a_version_is_what_a_release_begins_with(text: str, version: tuple[int, ...]) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize("text", ["stable", "v7.3", "7", ""])
def test_what_does_not_begin_with_two_numbers_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text!r} does not begin with a kernel version"):
        version_of(text)


@pytest.mark.parametrize(
    ("version", "covered"),
    [
        ((6, 2, 2), False),
        ((6, 2, 3), True),
        ((6, 3), True),
        ((6, 4, 99), True),
        ((6, 5, 0), False),
        ((6, 12), False),
    ],
)
def test_a_range_has_both_of_its_ends(version: tuple[int, ...], covered: bool) -> None:
    assert Range((6, 2, 3), (6, 4)).covers(version) is covered


def test_a_range_reads_as_it_is_written() -> None:
    assert str(range_of({"first": "6.12", "last": "7.3.4"})) == "6.12 to 7.3.4"
    assert str(range_of({"first": "6.12", "last": "6.12"})) == "6.12"
