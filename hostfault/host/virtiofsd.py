"""The virtiofs back-end that a person names in place of ours: ``--virtiofsd``."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from hostfault.plumbing.errors import UsageError


def find_virtiofsd(name: str) -> Path:
    """The program, by its path or its name in $PATH. Raises :class:`UsageError` for none."""
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"--virtiofsd {name}: no such program, or not one that may be executed")
    return Path(found).resolve()


def in_words(program: Path) -> str:
    """What identifies it in the evidence."""
    return f"{program} (sha256 {hashlib.sha256(program.read_bytes()).hexdigest()})"
