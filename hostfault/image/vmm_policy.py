"""The library that gives an unmodified QEMU a policy: images/vmm-policy."""

from __future__ import annotations

from pathlib import Path

from hostfault.image.guest import compile_c
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.project import IMAGES

SOURCE = IMAGES / "vmm-policy" / "policy.c"
NAME = "vmm-policy.so"
_LINE = ("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra")


def build_policy(cache: Cache) -> Path:
    """The library, compiled by this machine's gcc; of the C library it uses old symbols only."""
    return compile_c(cache, NAME, [SOURCE], [], _LINE)
