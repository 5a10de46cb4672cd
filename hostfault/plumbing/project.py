"""Where the project's data lies, and how its lists are read."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
IMAGES = PROJECT / "images"
KERNELS = PROJECT / "kernels"


def read_list(path: Path) -> list[str]:
    """The lines of a list; ``#`` begins a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]
