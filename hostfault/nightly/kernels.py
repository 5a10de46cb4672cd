"""``tree:PATH@REF``: a work tree of a repository at a commit, for the suite to build.

To fetch is the runner's business. The work tree is kept: a build of the next night's commit then
finds all but what changed as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hostfault.plumbing.errors import LaunchError, UsageError
from hostfault.plumbing.packages import run_tool

TREE = "tree:"


def check_out(kernels: Mapping[str, str], trees: Path) -> tuple[dict[str, str], list[str]]:
    """The kernels as pytest takes them, and for people which commits those were.

    Raises :class:`UsageError` for a repository or a commit that is not there.
    """
    found: dict[str, str] = {}
    notes: list[str] = []
    for label, kernel in kernels.items():
        found[label] = kernel
        place, at, ref = kernel.removeprefix(TREE).rpartition("@")
        if kernel.startswith(TREE) and at:
            tree = trees / label
            commit = _check_out(Path(place).expanduser(), ref, tree)
            found[label] = f"{TREE}{tree}"
            notes.append(f"{label} is {ref} of {place}, commit {commit}")
    return found, notes


def _check_out(repository: Path, ref: str, tree: Path) -> str:
    try:
        commit = _git(repository, "rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    except LaunchError as error:
        raise UsageError(f"--kernels: {repository} has no {ref}: {error}") from error
    if (tree / ".git").exists():
        _git(tree, "checkout", "--quiet", "--force", "--detach", commit)
    else:
        _git(repository, "worktree", "prune")
        tree.parent.mkdir(parents=True, exist_ok=True)
        _git(repository, "worktree", "add", "--quiet", "--force", "--detach", str(tree), commit)
    return commit


def _git(place: Path, *words: str) -> str:
    return run_tool(["git", "-C", str(place), *words], what=f"git {words[0]} in {place}").strip()
