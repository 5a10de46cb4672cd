"""docs/writing-a-test.md is true: what it says is done to a copy of the project, word by word."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "writing-a-test.md"
NOT_COPIED = (".git", ".venv", ".hostfault", ".*_cache", "__pycache__", "*.egg-info", "out")

# How the commands of the page are run: with this Python and its packages, which are not copied.
PYTEST = [sys.executable, "-P", "-m", "pytest"]
CI_DAX = [*PYTEST, "--host", "emulated", "tests/dax", "tests/ram"]  # as at the end of ci/dax

# What differs from run to run in what is printed.
VARYING = (
    r"0x[0-9a-f]{5,}",
    r"[\d,]+(?= failed attempts)",
    r"\d+(?= deselected)",
    r"[\d.]+(?= ?s\b)",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of the page."""

    language: str
    file: str  # the last one that is named above it
    text: str


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page in Markdown, in order."""
    file = ""
    parts = re.split(r"^```(\w+)\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)
    for words, language, text in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        named = re.findall(r"`((?:hostfault|images|tests)/[\w/]+\.\w+)`", words)
        file = named[-1] if named else file
        yield Block(language, file, text)


def patched(text: str, diff: str) -> str:
    """A file after a diff without line numbers, whose old lines it must have exactly once."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the file"
    return text.replace(old, new)


def pattern_of(line: str) -> str:
    """A line of documented output as a regular expression: numbers vary, and so does room."""
    varying = "|".join(VARYING)
    words = re.split(f"({varying})", line)
    exact = (re.sub(r"(?:\\ )+", r"\\s+", re.escape(word)) for word in words[::2])
    return r"[0-9a-fx,.]+".join(exact)


class Copy:
    """A copy of the project, to which things are done."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        shutil.copytree(PROJECT, directory, ignore=shutil.ignore_patterns(*NOT_COPIED))

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if block.language == "console":
            self._run(block.text)
            return
        target = self._directory / block.file
        if block.language == "diff":
            target.write_text(patched(target.read_text(), block.text))
        else:
            assert not target.exists(), f"{block.file} is to be a new file"
            target.write_text(block.text)

    def _run(self, transcript: str) -> None:
        line, *expected = transcript.splitlines()
        program, *options = shlex.split(line.removeprefix("$ "))
        start = {"ci/dax": CI_DAX, ".venv/bin/pytest": PYTEST}[program]
        done = subprocess.run(
            [*start, *options],
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(self._directory), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        for wanted in expected:
            assert re.search(pattern_of(wanted), done.stdout), f"{wanted!r} in:\n{done.stdout}"
        code = 1 if expected and " failed" in expected[-1] else 0  # pytest's own last line
        assert done.returncode == code, done.stdout + done.stderr


def test_numbers_that_vary_are_the_only_freedom() -> None:
    documented = "zero  SPIN  121 failed attempts to back gfn 0xf8008 in 0.1 s, at 0x401bd5"
    printed = "zero    SPIN  1,064 failed attempts to back gfn 0xf8010 in 12.5 s, at 0x4016b5"
    assert re.search(pattern_of(documented), printed)
    assert not re.search(pattern_of(documented), printed.replace("SPIN", "OK"))
    assert not re.search(pattern_of("load returned 0x00"), "load returned 0x88")


def test_a_diff_that_does_not_fit_is_refused() -> None:
    assert patched("a\nb\nc\n", " a\n-b\n+x\n") == "a\nx\nc\n"
    with pytest.raises(AssertionError, match="is 0 times in the file"):
        patched("a\nb\n", " b\n+c\n c\n")


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    steps = list(blocks(PAGE.read_text()))
    files = [step.file for step in steps if step.language in ("python", "c")]
    assert len(files) == len(set(files)) == 5, "two implementations, a C file, two tests"
    assert sum(step.language == "console" for step in steps) == 4
    copy = Copy(tmp_path / "hostfault")
    for step in steps:
        copy.follow(step)
