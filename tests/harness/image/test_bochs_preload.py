"""The library that is preloaded into Bochs: what of it works without one."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from hostfault.image import bochs as module
from hostfault.plumbing.cache import Cache


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    cache = Cache(tmp_path_factory.mktemp("cache"))
    path: Path = module._compiled(cache, module.PRELOADED, "preload.c", module._LIBRARY)
    cache.close()
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize(("function", "words"), [("refresh", ()), ("curs_set", (2,))])
def test_nothing_is_drawn_on_a_display_that_nobody_reads(
    library: ctypes.CDLL, function: str, words: tuple[int, ...]
) -> None:
    assert getattr(library, function)(*words) == 0  # curses.h: OK


def test_nobody_has_pressed_a_key(library: ctypes.CDLL) -> None:
    assert library.wgetch(None) == -1  # curses.h: ERR
