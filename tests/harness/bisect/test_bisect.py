"""``ci/bisect`` from end to end: real git, real pytest, real exit codes.

Only the compiler and the lab are stand-ins (bisect_stand_ins.py), so that a step takes a second.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import bisect_stand_ins
import pytest

from hostfault.bisect import demo
from hostfault.bisect.codes import STOP
from hostfault.plumbing.deadline import Deadline, poll

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BISECT = [sys.executable, "-P", str(HERE / "bisect_stand_ins.py"), "bisect"]
MMU = "arch/x86/kvm/mmu/mmu.c"


def fix(tree: Path) -> None:
    (tree / MMU).write_text(bisect_stand_ins.FIXED + "\n")


def unfix(tree: Path) -> None:
    (tree / MMU).write_text("/* nobody is told */\n")


class Tree:
    """A small tree that has all the files which the history changes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "a linux"
        self.artifacts = home / "steps"
        self.running = home / "running"  # has the pid of a pytest that hangs
        for name in ("debugfs", "i8254", "i8259", "ioapic", "irq", "mtrr", "mmu/mmu"):
            self._write(f"arch/x86/kvm/{name}.c", "")
        for name in ("eventfd", "irqchip"):
            self._write(f"virt/kvm/{name}.c", "")
        init = "int kvm_init(unsigned vcpu_size, unsigned vcpu_align, struct module *module)\n{\n"
        self._write("virt/kvm/kvm_main.c", init + "}\n")

    def _write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def commit(self, *commits: demo.DemoCommit) -> dict[str, str]:
        return demo.make(self.root, commits)

    def command(self, *words: str) -> list[str]:
        return [*BISECT, "--artifacts", str(self.artifacts), *words]

    def environment(self, **settings: str) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "RUNNING": str(self.running),
            **settings,
        }

    def bisect(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """One step, by hand."""
        return subprocess.run(
            self.command(*words),
            cwd=self.root,
            env=self.environment(**settings),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def git_bisect_run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "bisect", "run", *self.command(*words)],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def stock(tree: Tree) -> Tree:
    """A tree with one commit, which spins."""
    tree.commit()
    return tree


def words_of(log: str, kind: str) -> list[str]:
    """The subjects that a bisection's log has as ``kind``."""
    lines = [line for line in log.splitlines() if line.startswith(f"# {kind}: ")]
    return [line.split("] ", 1)[1] for line in lines]


# --- a whole bisection ---


def test_git_bisect_run_finds_the_fix_and_skips_what_cannot_be_tested(tree: Tree) -> None:
    commits = demo.history(fix)
    ids = tree.commit(*commits)
    assert len(commits) == 12
    demo.start(tree.root, ids, commits)
    done = tree.git_bisect_run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert demo.found(tree.root) == demo.FIX
    log = demo.git(tree.root, "bisect", "log")
    assert demo.DOES_NOT_BOOT in words_of(log, "skip")
    lines = [line for line in done.stdout.splitlines() if line.startswith("bisect: ")]
    assert len(lines) == len(list(tree.artifacts.iterdir()))
    (fixed,) = [line for line in lines if line.endswith(f"| fixed | {demo.FIX}")]
    assert re.match(rf"bisect: {ids[demo.FIX][:12]} \| KVM only, \d+ s \| vm-exit, \d+ s \|", fixed)


def test_git_bisect_run_finds_what_broke_it(tree: Tree) -> None:
    again = "KVM: forget to tell"
    commits = (
        demo.DemoCommit("KVM: tell", fix),
        demo.history(fix)[0],
        demo.DemoCommit(again, unfix),
        demo.history(fix)[1],
    )
    ids = tree.commit(*commits)
    demo.git(tree.root, "bisect", "start", ids[commits[-1].subject], ids["KVM: tell"])
    done = tree.git_bisect_run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ids[again]} is the first bad commit" in done.stdout


def test_a_broken_harness_ends_the_bisection_and_blames_no_commit(tree: Tree) -> None:
    commits = demo.history(fix)
    ids = tree.commit(*commits)
    demo.start(tree.root, ids, commits)
    before = demo.git(tree.root, "bisect", "log")
    done = tree.git_bisect_run("-k", "nothing-is-called-so")
    assert done.returncode != 0
    assert demo.git(tree.root, "bisect", "log") == before


# --- one commit ---


def test_a_kernel_that_spins_is_bad(stock: Tree) -> None:
    done = stock.bisect()
    assert done.returncode == 1
    assert "| spin, " in done.stdout
    assert done.stdout.endswith(f" | bad | {demo.START}\n")


def test_a_kernel_that_is_fixed_is_good(tree: Tree) -> None:
    tree.commit(demo.DemoCommit(demo.FIX, fix))
    assert tree.bisect().returncode == 0


def test_the_answers_are_exchanged_when_the_fix_is_looked_for(tree: Tree) -> None:
    tree.commit()
    assert tree.bisect("--term", "broken/fixed").returncode == 0
    fix(tree.root)
    demo.git(tree.root, "commit", "--quiet", "--all", "--message", demo.FIX)
    assert tree.bisect("--term", "broken/fixed").returncode == 1


def test_options_after_two_dashes_reach_pytest(tree: Tree) -> None:
    tree.commit(demo.DemoCommit(demo.FIX, fix))
    done = tree.bisect("--", "--accept", "task")
    assert (done.returncode, "| vm-exit, " in done.stdout) == (1, True)


def test_another_bad_verdict_than_the_one_looked_for_cannot_be_judged(stock: Tree) -> None:
    assert stock.bisect("--verdict", "spin").returncode == 1
    done = stock.bisect("--verdict", "host-death", "--retries", "0")
    assert done.returncode == 125
    assert "| spin: test_truncate" in done.stdout


def test_the_runs_that_decide_are_counted(stock: Tree) -> None:
    done = stock.bisect("--repeat", "3", "--bad", "2")
    assert (done.returncode, "| 2 times spin, " in done.stdout) == (1, True)


def test_every_run_leaves_its_evidence(stock: Tree) -> None:
    stock.bisect()
    (folder,) = stock.artifacts.iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "build.log",
        "built.json",
        "run-1",
        "step.json",
    }
    assert len(list(folder.glob("run-1/tests/*/verdict.json"))) == 1


# --- what cannot be tested ---


def only(name: str) -> demo.DemoCommit:
    return next(commit for commit in demo.history(fix) if commit.subject == name)


def test_a_commit_that_does_not_build_is_skipped_with_the_compilers_words(tree: Tree) -> None:
    tree.commit(only(demo.DOES_NOT_BUILD))
    done = tree.bisect()
    assert done.returncode == 125
    assert "debugfs.c:3:8: error: implicit declaration" in done.stdout


def test_a_commit_that_does_not_boot_is_skipped(tree: Tree) -> None:
    tree.commit(only(demo.DOES_NOT_BOOT))
    done = tree.bisect("--retries", "0")
    assert done.returncode == 125
    assert "the emulated host did not come up" in done.stdout


def test_tests_that_do_not_end_are_ended_from_outside(stock: Tree) -> None:
    done = stock.bisect("--test-timeout", "10", "--retries", "0", STAND_INS="hangs")
    assert done.returncode == 125
    assert "the tests had not ended after 10 s" in done.stdout
    assert is_gone(int(stock.running.read_text()))


def test_a_build_that_does_not_end_is_ended_from_outside(stock: Tree) -> None:
    done = stock.bisect("--build-timeout", "1", STAND_INS="compiler hangs")
    assert done.returncode == STOP, "the stock kernel's KVM is not compiled in that time either"
    assert "does not build in 1 s" in done.stderr


# --- what stops the bisection ---


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("lab broken", "7.3.4 cannot be tested either: "),
        ("no compiler", "KVM of the packaged 7.3.4 cannot be compiled either: "),
        ("compiler killed", "Killed signal"),
        ("wrong kernel", "built was "),
    ],
)
def test_trouble_that_is_not_the_commits_stops(stock: Tree, trouble: str, words: str) -> None:
    done = stock.bisect("--retries", "0", STAND_INS=trouble)
    assert done.returncode == STOP
    assert words in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-k", "no-such-test"), "no test is selected"),
        (("-k", "((("), "pytest was called wrongly"),
        (("--", "--no-such-option"), "pytest was called wrongly"),
        (("--", "--collect-only", "no/such/file.py"), "pytest was called wrongly"),
        (("--bad", "2"), "--bad 2 of --repeat 1"),
        (("--retries", "-1"), "cannot be less than 0"),
        (("--cross-check", "9.9"), "no packaged kernel; known are"),
        (("--term", "up/down"), "invalid choice"),
        (("--help",), ""),
    ],
)
def test_a_wrong_call_stops(stock: Tree, options: tuple[str, ...], words: str) -> None:
    done = stock.bisect(*options)
    assert done.returncode == STOP
    assert words in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: fix(tree.root), f"is dirty ( M {MMU}), and a verdict would be of no commit"),
        (lambda tree: (tree.root / "new.c").touch(), "is dirty (?? new.c)"),
        (lambda tree: shutil.rmtree(tree.root / "virt"), "has no virt/kvm: not a kernel's tree"),
        (lambda tree: shutil.rmtree(tree.root / ".git"), "is not inside a git repository"),
    ],
    ids=["changed", "untracked", "no-kvm", "no-git"],
)
def test_a_tree_that_is_no_commit_of_a_kernel_stops(stock: Tree, change, words: str) -> None:
    change(stock)
    done = stock.bisect()
    assert done.returncode == STOP
    assert words in done.stderr


@pytest.mark.parametrize(
    ("ends", "options", "words"),
    [
        (("good", "bad"), ("--term", "broken/fixed"), "--term broken/fixed, but this bisection"),
        (("broken", "fixed"), ("--term", "good/bad"), "--term good/bad, but this bisection"),
        (("fixed", "broken"), ("--term", "broken/fixed"), "the older end fixed and the newer one"),
        (("fixed", "other"), ("--term", "broken/fixed"), "the older end fixed and the newer one"),
        (("other", "fixed"), ("--term", "good/bad"), "the older end other and the newer one fixed"),
        (("good", "fixed"), (), "good and fixed both mean that the tests pass"),
        (("broken", "bad"), ("--term", "good/bad"), "both mean that the tests fail"),
        (("old", "new"), (), "say with --term what is looked for"),
    ],
)
def test_terms_that_would_turn_every_answer_round_stop(
    stock: Tree, ends: tuple[str, str], options: tuple[str, ...], words: str
) -> None:
    demo.git(stock.root, "bisect", "start", "--term-old", ends[0], "--term-new", ends[1])
    done = stock.bisect(*options)
    assert done.returncode == STOP
    assert words in done.stderr


@pytest.mark.parametrize(
    ("ends", "options", "answer"),
    [
        (("broken", "fixed"), (), "0 broken"),
        (("fixed", "broken"), (), "1 broken"),
        (("fixed", "broken"), ("--term", "good/bad"), "1 broken"),
        (("broken", "other"), (), "0 broken"),
        (("fast", "broken"), (), "1 broken"),
        (("old", "new"), ("--term", "broken/fixed"), "0 broken"),
        (("old", "new"), ("--term", "good/bad"), "1 bad"),
    ],
)
def test_a_spin_is_the_end_of_the_bisection_that_means_it(
    stock: Tree, ends: tuple[str, str], options: tuple[str, ...], answer: str
) -> None:
    demo.git(stock.root, "bisect", "start", "--term-old", ends[0], "--term-new", ends[1])
    done = stock.bisect(*options)
    code, word = answer.split()
    assert (done.returncode, f"| {word} |" in done.stdout) == (int(code), True)


def test_a_bisection_without_checkouts_stops(tree: Tree) -> None:
    commits = demo.history(fix)
    ids = tree.commit(*commits)
    ends = (ids[commits[-1].subject], ids[demo.START])
    demo.git(tree.root, "bisect", "start", "--no-checkout", *ends)
    done = tree.bisect()
    assert done.returncode == STOP
    assert "start it without --no-checkout" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_and_leaves_nothing_running(stock: Tree, number: signal.Signals) -> None:
    child = subprocess.Popen(
        stock.command(),
        cwd=stock.root,
        env=stock.environment(STAND_INS="hangs"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = Deadline(60.0, "the tests to run")
    pid = int(
        poll(deadline, lambda: (stock.running.exists() and stock.running.read_text()) or None)
    )
    child.send_signal(number)
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (STOP + number, "")
    assert f"ended by {number.name}" in errors
    assert "Traceback" not in errors
    assert is_gone(pid)


def test_an_answer_that_nobody_reads_stops(stock: Tree) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            stock.command(),
            cwd=stock.root,
            env=stock.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
        )
    assert done.returncode == STOP


def is_gone(pid: int) -> bool:
    """Whether a process ended. (Once reaped, its number would have to be given out anew.)"""
    return not Path(f"/proc/{pid}").exists()


# --- packaged kernels ---


def versions_in(line: str) -> list[str]:
    """The kernels that a line names, in its order."""
    return re.findall(r"\b\d+(?:\.\d+)+\b", line)


def test_packages_that_all_spin_are_said_to_agree(tmp_path: Path) -> None:
    tree = Tree(tmp_path)  # not even a repository
    done = tree.bisect("--packages", "6.1..7.3.4")
    assert done.returncode == 1
    assert versions_in(done.stdout.splitlines()[-1]) == ["6.1", "7.3.4"]


def test_the_first_package_that_differs_is_found(tmp_path: Path) -> None:
    words = ("--packages", "6.12..6.18", "--term", "broken/fixed")
    done = Tree(tmp_path).bisect(*words, FIRST_FIXED="6.17", BROKEN_PACKAGES="6.16")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("bisect: 6.12 | spin, ")
    assert lines[0].endswith(" | broken")
    assert versions_in(lines[-1]) == ["6.17", "6.17.8"]
    assert lines[-1].index("fixed") < lines[-1].index("6.17.8") < lines[-1].index("broken")


def test_packages_that_cannot_be_tested_are_named(tmp_path: Path) -> None:
    words = ("--packages", "6.16..6.17", "--retries", "0")
    done = Tree(tmp_path).bisect(*words, FIRST_FIXED="6.17", BROKEN_PACKAGES="6.17.8")
    assert done.returncode == 125
    last = done.stdout.splitlines()[-1]
    assert versions_in(last) == ["6.16", "6.17", "6.17.8"]
    assert last.index("bad") < last.index("6.17") < last.index("good") < last.index("6.17.8")


# --- the command ---


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A copy of the command, with a set-up that works and a Python that notes its words."""
    project = tmp_path / "a project"
    (project / "ci").mkdir(parents=True)
    (project / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "ci" / "bisect", project / "ci" / "bisect")
    set_up(project, "")
    python(project, 'echo "$@"; exit 1')
    return project


def set_up(project: Path, line: str) -> None:
    text = f"set -euo pipefail\nproject={str(project)!r}\nneed() {{ :; }}\nmake_venv() {{ :; }}\n"
    (project / "ci" / "setup").write_text(f"{text}{line}\n")


def python(project: Path, line: str) -> None:
    program = project / ".venv/bin/python"
    check = 'case "$*" in *import*) exit "${IMPORTS:-0}" ;; esac'
    program.write_text(f"#!/bin/sh\n{check}\n{line}\n")
    program.chmod(0o755)


def ci_bisect(project: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "ci" / "bisect", "-k", "a b"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_hands_on_its_words_and_the_answer(project: Path) -> None:
    done = ci_bisect(project)
    assert (done.returncode, done.stdout) == (1, "-P -m hostfault.bisect -k a b\n")


@pytest.mark.parametrize(
    "line",
    ["exit 1", "false", "need() { exit 1; }", "make_venv() { return 1; }", "echo $unset", "die"],
)
def test_a_set_up_that_fails_is_no_answer(project: Path, line: str) -> None:
    set_up(project, line)
    done = ci_bisect(project)
    assert (done.returncode, done.stdout) == (STOP, "")


def test_a_program_that_cannot_be_loaded_is_no_answer(project: Path) -> None:
    assert ci_bisect(project, IMPORTS="1").returncode == STOP
