"""Where the recipes of the images lie, and how their lists are read."""

from __future__ import annotations

from pathlib import Path

IMAGES = Path(__file__).parents[2] / "images"


def read_list(path: Path) -> list[str]:
    """The lines of a list; ``#`` begins a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]
