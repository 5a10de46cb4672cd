"""A git history made for bisecting, and ``ci/bisect-demo``: a real bisection of it.

A dozen commits on a kernel's source: one fixes the spin, one does not build, one does not boot,
the others change nothing that matters. ``git bisect run`` must find the fix.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostfault.bisect.codes import Decision
from hostfault.kernel import series
from hostfault.kernel.catalog import CatalogEntry, load, newest
from hostfault.kernel.fetch import fetch_packages
from hostfault.plumbing.cache import default_cache
from hostfault.plumbing.errors import HostfaultError, SetupError
from hostfault.plumbing.packages import run_tool
from hostfault.plumbing.process import call, run
from hostfault.plumbing.project import PROJECT
from hostfault.plumbing.versions import version_of

Edit = Callable[[Path], None]
START = "the source as it is packaged"
FIX = "KVM: tell the guest's owner when the host cannot back a page"
FIXING_SERIES = "fail-at-once"
DOES_NOT_BUILD = "KVM: x86: use a function that is yet to be written"
DOES_NOT_BOOT = "KVM: be sure that nobody loads this module"
UNPACK_PATIENCE = 900.0  # seconds for a kernel's source, on a slow disk
STEP_PATIENCE = 3600.0  # seconds for one commit; some ten with a warm cache
RUN_PATIENCE = 4 * STEP_PATIENCE  # of a bisection of a dozen commits: about four steps

_UNWRITTEN = "\nint kvm_use_it(void) { return kvm_is_not_written_yet(); }\n"
_INIT = "int kvm_init(unsigned vcpu_size, unsigned vcpu_align, struct module *module)\n{\n"
_PANIC = _INIT + '\tpanic("hostfault: this commit does not boot");\n'


@dataclass(frozen=True)
class DemoCommit:
    """One commit to make."""

    subject: str
    edit: Edit


def history(fix: Edit) -> tuple[DemoCommit, ...]:
    """The dozen, oldest first, to be made on top of :data:`START`; ``fix`` is the one that fixes.

    Each defect but the spin is undone by the commit after it. What does not boot stands in the
    middle, where every bisection begins.
    """
    about = "say what this file is about"
    return (
        DemoCommit(f"KVM: x86: {about} (i8254)", _remark("arch/x86/kvm/i8254.c")),
        DemoCommit(f"KVM: x86: {about} (i8259)", _remark("arch/x86/kvm/i8259.c")),
        DemoCommit(f"KVM: x86: {about} (mtrr)", _remark("arch/x86/kvm/mtrr.c")),
        DemoCommit(DOES_NOT_BUILD, _append("arch/x86/kvm/debugfs.c", _UNWRITTEN)),
        DemoCommit(
            "KVM: x86: write it another time", _replace("arch/x86/kvm/debugfs.c", _UNWRITTEN)
        ),
        DemoCommit(DOES_NOT_BOOT, _replace("virt/kvm/kvm_main.c", _INIT, _PANIC)),
        DemoCommit("KVM: let it be loaded again", _replace("virt/kvm/kvm_main.c", _PANIC, _INIT)),
        DemoCommit(FIX, fix),
        DemoCommit(f"KVM: x86: {about} (ioapic)", _remark("arch/x86/kvm/ioapic.c")),
        DemoCommit(f"KVM: x86: {about} (irq)", _remark("arch/x86/kvm/irq.c")),
        DemoCommit(f"KVM: {about} (eventfd)", _remark("virt/kvm/eventfd.c")),
        DemoCommit(f"KVM: {about} (irqchip)", _remark("virt/kvm/irqchip.c")),
    )


def make(tree: Path, commits: Sequence[DemoCommit]) -> dict[str, str]:
    """Turn a source tree into a git repository with that history; its ids by subject.

    Who, when and what are the same each time, and so are the ids.
    """
    git(tree, "init", "--quiet", "--initial-branch=demo")
    # Nothing of the person's own: neither hooks nor signatures nor ignored files.
    for name, value in (
        ("core.excludesFile", os.devnull),
        ("core.hooksPath", os.devnull),
        ("commit.gpgSign", "false"),
        ("gc.auto", "0"),
    ):
        git(tree, "config", name, value)
    ids: dict[str, str] = {}
    for number, commit in enumerate((DemoCommit(START, lambda _: None), *commits)):
        commit.edit(tree)
        git(tree, "add", "--all", *(["--force"] if number == 0 else []))
        git(tree, "commit", "--quiet", "--message", commit.subject, minute=number)
        ids[commit.subject] = git(tree, "rev-parse", "HEAD").strip()
    return ids


def git(tree: Path, *words: str, minute: int = 0) -> str:
    """Run git in a tree; ``minute`` is when it is, for what it records."""
    now = f"2020-01-01T00:{minute:02}:00Z"
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "demo"), ("EMAIL", "demo@localhost"), ("DATE", now))
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return run(["git", "-C", str(tree), *words], what=f"git {words[0]}", env={**kept, **who})


def start(tree: Path, ids: dict[str, str], commits: Sequence[DemoCommit]) -> None:
    """Begin the bisection: what fixed it?"""
    git(tree, "bisect", "start", "--term-old", "broken", "--term-new", "fixed")
    git(tree, "bisect", "broken", ids[START])
    git(tree, "bisect", "fixed", ids[commits[-1].subject])


def found(tree: Path) -> str:
    """The subject of the commit that the bisection ended at, or "" if it did not end."""
    log = git(tree, "bisect", "log")
    ends = [line for line in log.splitlines() if line.startswith("# first fixed commit: ")]
    return ends[0].split("] ", 1)[1] if ends else ""


def _append(name: str, text: str) -> Edit:
    def edit(tree: Path) -> None:
        with (tree / name).open("a") as stream:
            stream.write(text)

    return edit


def _remark(name: str) -> Edit:
    return _append(name, f"\n/* {Path(name).stem}: see the comment at the top. */\n")


def _replace(name: str, old: str, new: str = "") -> Edit:
    def edit(tree: Path) -> None:
        text = (tree / name).read_text()
        if text.count(old) != 1:
            raise SetupError(f"{name} is not as this history expects it: no single {old!r}")
        (tree / name).write_text(text.replace(old, new))

    return edit


# --- ci/bisect-demo ---


def main() -> int:
    """Make the history of a real kernel, bisect it, and compare."""
    parser = argparse.ArgumentParser(prog="ci/bisect-demo", description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="a new directory for the tree and the logs")
    parser.add_argument("--kernel", default=newest(), help="whose source (default %(default)s)")
    parser.add_argument("bisect", nargs="*", help="after --: options for ci/bisect")
    asked = parser.parse_args()
    with ExitStack() as stack:
        place = Path(
            asked.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="hostfault-"))
        ).absolute()
        try:
            place.mkdir(exist_ok=not asked.keep)
            shown = demonstrate(place, load()[asked.kernel], asked.bisect)
        except (HostfaultError, OSError, KeyError) as error:
            print(f"bisect-demo: {error}", file=sys.stderr)
            return 2
    _show(shown.steps)
    print(f"bisect-demo: {'right' if shown.right else 'WRONG'}: found {shown.found or 'nothing'!r}")
    return 0 if shown.right else 1


@dataclass(frozen=True)
class Shown:
    """What a bisection of the history came to."""

    code: int  # of git bisect run
    found: str  # subject of the commit that it ended at
    steps: tuple[dict[str, Any], ...]  # step.json of each, in the order in which they were made

    @property
    def untestable(self) -> set[str]:
        """The subjects of the commits that were skipped."""
        skipped = (s for s in self.steps if s["decision"] == Decision.UNTESTABLE.value)
        return {step["subject"] for step in skipped}

    @property
    def right(self) -> bool:
        """Whether the fix was found, and those skipped that cannot be tested, and no others."""
        answer = (self.code, self.found, self.untestable)
        return answer == (0, FIX, {DOES_NOT_BUILD, DOES_NOT_BOOT})


def demonstrate(place: Path, entry: CatalogEntry, options: Sequence[str]) -> Shown:
    """Make the history from a packaged kernel's source, and bisect it with ci/bisect.

    ``place`` gets the tree and what every step left.
    """
    tree, artifacts = place / "linux", place / "steps"
    print(f"... unpacking the source of {entry.release}", flush=True)
    _unpack(entry, tree)
    print("... making the history", flush=True)
    patches = series.find(FIXING_SERIES).patches_for(version_of(entry.release))
    commits = history(lambda tree: series.apply(patches, tree))
    ids = make(tree, commits)
    start(tree, ids, commits)
    words = [str(PROJECT / "ci" / "bisect"), "--artifacts", str(artifacts), *options]
    line = ["git", "bisect", "run", *words]
    code = call(line, what="git bisect run", timeout=RUN_PATIENCE, cwd=tree)
    answer = found(tree)
    _test_what_git_left_out(tree, ids, artifacts, words)
    return Shown(code, answer, tuple(_steps(artifacts)))


def _test_what_git_left_out(
    tree: Path, ids: dict[str, str], artifacts: Path, words: Sequence[str]
) -> None:
    """Test by hand the untestable commits that git did not happen to ask for."""
    asked = {step["subject"] for step in _steps(artifacts)}
    git(tree, "bisect", "reset")
    for subject in {DOES_NOT_BUILD, DOES_NOT_BOOT} - asked:
        print(f"... git did not ask for {subject!r}, so it is asked for by hand", flush=True)
        git(tree, "checkout", "--quiet", ids[subject])
        call(words, what="ci/bisect", timeout=STEP_PATIENCE, cwd=tree)


def _unpack(entry: CatalogEntry, tree: Path) -> None:
    name = "linux-source-" + ".".join(entry.release.split(".")[:2])
    cache = default_cache()
    try:
        archive = fetch_packages(cache, entry.suite, [name]) / "usr/src" / f"{name}.tar.xz"
        tree.mkdir()
        run_tool(
            ["tar", "-C", str(tree), "--strip-components=1", "-xJf", str(archive)],
            what=f"unpacking {name}",
            timeout=UNPACK_PATIENCE,
        )
    finally:
        cache.close()


def _steps(artifacts: Path) -> list[dict[str, Any]]:
    """The records of the steps, in the order in which they were made."""
    files = sorted(artifacts.glob("*/step.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text()) for path in files]


def _show(steps: Sequence[dict[str, Any]]) -> None:
    """The steps with their seconds."""
    print("\n build  tests   total  decision          commit")
    for step in steps:
        build, tests = step["build_seconds"], step["test_seconds"]
        print(
            f"{build:6.1f} {tests:6.1f} {build + tests:7.1f}  {step['decision']:16}  "
            f"{step['subject']} ({step['verdicts'] or step['built']})"
        )


if __name__ == "__main__":
    sys.exit(main())
