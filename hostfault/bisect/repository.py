"""What is asked of git about the tree that is bisected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hostfault.bisect.codes import TERMS, BisectTerms, terms_of
from hostfault.plumbing.errors import LaunchError, UsageError
from hostfault.plumbing.process import run

KVM = ("arch/x86/kvm", "virt/kvm")  # without these there is nothing to bisect


@dataclass(frozen=True)
class Commit:
    """The commit that is checked out."""

    id: str
    subject: str

    @property
    def short(self) -> str:
        """Enough of the id to find it again."""
        return self.id[:12]


class Repository:
    """The git repository around a directory. Raises :class:`UsageError` where there is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            self.root = Path(self._git("rev-parse", "--show-toplevel").rstrip("\n"))
        except LaunchError as error:
            raise UsageError(f"{directory} is not inside a git repository\n{error}") from error

    def commit(self) -> Commit:
        """What is checked out."""
        id_, subject = self._git("log", "-1", "--format=%H%n%s").rstrip("\n").split("\n", 1)
        return Commit(id_, subject)

    def check(self) -> None:
        """Raise :class:`UsageError` unless what lies in the tree is a commit of a kernel."""
        missing = [name for name in KVM if not (self.root / name).is_dir()]
        if missing:
            raise UsageError(f"{self.root} has no {' and no '.join(missing)}: not a kernel's tree")
        if self._answer("rev-parse", "--quiet", "--verify", "BISECT_HEAD"):
            raise UsageError(
                "the bisection checks nothing out, so that the tree is not what git asks about: "
                "start it without --no-checkout"
            )
        changed = self._git("status", "--porcelain").splitlines()
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise UsageError(
                f"{self.root} is dirty ({', '.join(changed[:3])}{more}), and a verdict would be of "
                "no commit: commit, git stash -u, or list what is no source in .git/info/exclude"
            )

    def terms(self, wanted: str | None) -> BisectTerms:
        """What ``--term`` says, checked against what the bisection under way calls its ends.

        The words decide, not their order: git lets ``fixed`` be the older end, too. Raises
        :class:`UsageError` if they contradict each other: every answer would be wrong.
        """
        ends = self._ends()
        if ends is None:
            return TERMS[wanted or "good/bad"]
        here = f"this bisection calls the older end {ends[0]} and the newer one {ends[1]}"
        try:
            of_git = terms_of(*ends)
        except ValueError as error:
            raise UsageError(f"{here}: {error}") from error
        if of_git is None:
            if wanted is None:
                raise UsageError(f"{here}: say with --term what is looked for ({', '.join(TERMS)})")
            return TERMS[wanted]
        asked = TERMS[wanted] if wanted else of_git
        if asked.good_is_old is not of_git.good_is_old:
            raise UsageError(
                f"--term {asked.name}, but {here}, and {of_git.when_good} is what passes: leave "
                f"out --term, or git bisect start --term-old {asked.old} --term-new {asked.new}"
            )
        return of_git

    def _ends(self) -> tuple[str, str] | None:
        """What the bisection under way calls the older and the newer end; None without one."""
        old = self._answer("bisect", "terms", "--term-old").strip()
        new = self._answer("bisect", "terms", "--term-new").strip()
        return (old, new) if old and new else None

    def _git(self, *arguments: str) -> str:
        argv = ["git", "-C", str(self._directory), *arguments]
        return run(argv, what=f"git {arguments[0]}", timeout=300.0)

    def _answer(self, *arguments: str) -> str:
        """The same, but "" where git says no."""
        try:
            return self._git(*arguments)
        except LaunchError:
            return ""
