"""The parts of a bisection that need no git and no kernel: what decides, and what is read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest

from hostfault.bisect import build, fixes
from hostfault.bisect.codes import TERMS, Decision
from hostfault.bisect.decide import (
    Rule,
    RunResult,
    Sort,
    TestOutcome,
    TestResult,
    decide,
    in_words,
    sort,
)
from hostfault.bisect.packages import Boundary, between, search
from hostfault.bisect.results import read
from hostfault.case.model import VerdictKind
from hostfault.kernel.buildroot import BuildRoot, error_lines
from hostfault.kernel.kvm_only import Base
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import (
    BrokenHarnessError,
    CacheMissError,
    HostfaultError,
    LaunchError,
    SetupError,
    UsageError,
)

SPIN, OK, DEATH = VerdictKind.SPIN, VerdictKind.OK, VerdictKind.HOST_DEATH
PASSED, FAILED, ERROR, SKIPPED = (
    TestOutcome.PASSED,
    TestOutcome.FAILED,
    TestOutcome.ERROR,
    TestOutcome.SKIPPED,
)
GOOD, BAD, UNTESTABLE = Decision.GOOD, Decision.BAD, Decision.UNTESTABLE


def run_of(*tests: tuple[TestOutcome, VerdictKind | None]) -> RunResult:
    return RunResult(
        tuple(TestResult(f"t{n}", outcome, kind) for n, (outcome, kind) in enumerate(tests))
    )


# --- what one run proves ---


@pytest.mark.parametrize(
    ("tests", "proves"),
    [
        ([(PASSED, OK)], Sort.GOOD),
        ([(PASSED, OK), (PASSED, VerdictKind.VM_EXIT)], Sort.GOOD),
        ([(FAILED, SPIN)], Sort.BAD),
        ([(PASSED, OK), (FAILED, SPIN)], Sort.BAD),
        ([(ERROR, None), (FAILED, SPIN)], Sort.BAD),
        ([], Sort.NOTHING),
        ([(ERROR, None)], Sort.NOTHING),
        ([(SKIPPED, None)], Sort.NOTHING),
        ([(PASSED, OK), (SKIPPED, None)], Sort.NOTHING),
        ([(PASSED, OK), (ERROR, None)], Sort.NOTHING),
        ([(ERROR, OK)], Sort.NOTHING),
        ([(FAILED, None)], Sort.NOTHING),
        ([(PASSED, None)], Sort.NOTHING),
    ],
)
def test_only_verdicts_prove_something(
    tests: list[tuple[TestOutcome, VerdictKind | None]], proves: Sort
) -> None:
    assert sort(run_of(*tests)) is proves


def test_a_run_without_results_proves_nothing() -> None:
    run = RunResult(trouble="pytest ended with code -9\nand more")
    assert sort(run) is Sort.NOTHING
    assert in_words(run) == "no verdict: pytest ended with code -9"


def test_only_the_verdict_looked_for_makes_a_run_bad() -> None:
    assert sort(run_of((FAILED, DEATH)), {SPIN}) is Sort.NOTHING
    assert sort(run_of((FAILED, DEATH), (FAILED, SPIN)), {SPIN}) is Sort.BAD
    assert sort(run_of((PASSED, OK)), {SPIN}) is Sort.GOOD


def test_the_verdicts_of_a_run_are_counted_in_its_words() -> None:
    assert in_words(run_of((FAILED, SPIN), (PASSED, OK), (FAILED, SPIN))) == "ok, 2 spin"
    assert in_words(run_of((FAILED, SPIN), (ERROR, None))) == "spin"
    assert in_words(run_of((PASSED, OK), (ERROR, None))) == "ok: t1 error:"


# --- how many runs decide ---


@pytest.mark.parametrize(
    ("rule", "runs", "decision"),
    [
        (Rule(), "b", BAD),
        (Rule(), "g", GOOD),
        (Rule(), "n", None),
        (Rule(), "nn", UNTESTABLE),
        (Rule(), "ng", GOOD),
        (Rule(retries=0), "n", UNTESTABLE),
        (Rule(5, 2), "ggg", None),
        (Rule(5, 2), "gggb", None),
        (Rule(5, 2), "ggggb", GOOD),
        (Rule(5, 2), "gggg", GOOD),
        (Rule(5, 2), "gggbb", BAD),
        (Rule(5, 2), "bb", BAD),
        (Rule(3, 3), "g", GOOD),
        (Rule(3, 1), "gg", None),
        (Rule(3, 1), "ggg", GOOD),
        (Rule(3, 1), "gngn", UNTESTABLE),
        (Rule(3, 1), "gnb", BAD),
    ],
)
def test_so_many_bad_ones_of_so_many_decide(
    rule: Rule, runs: str, decision: Decision | None
) -> None:
    kinds = {"g": Sort.GOOD, "b": Sort.BAD, "n": Sort.NOTHING}
    assert decide(rule, [kinds[run] for run in runs]) is decision


@pytest.mark.parametrize("numbers", [(1, 0, 0), (1, 2, 0), (0, 0, 0), (1, 1, -1)])
def test_a_rule_that_could_not_decide_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError):
        Rule(*numbers)


# --- exit codes ---


def test_git_is_told_old_or_new_and_not_good_or_bad() -> None:
    codes = {
        name: [terms.exit_code(decision) for decision in (GOOD, BAD, UNTESTABLE)]
        for name, terms in TERMS.items()
    }
    assert codes == {"good/bad": [0, 1, 125], "broken/fixed": [1, 0, 125]}


def test_the_words_are_those_of_the_terms() -> None:
    terms = TERMS["broken/fixed"]
    assert [terms.word(decision) for decision in (GOOD, BAD)] == ["fixed", "broken"]
    assert (terms.old, terms.new) == ("broken", "fixed")


# --- results of pytest ---


def junit(tmp_path: Path, *cases: str) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def judged(tmp_path: Path, inside: str = "", **changes: object) -> str:
    kernel = {"image": "/b", "modules": "/m", "build_id": "ab"}
    verdict = {"verdict": "spin", "summary": "many faults", "host_kernel": kernel, **changes}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    where = f'<properties><property name="artifacts" value="{tmp_path}"/></properties>'
    return f'<testcase classname="c" name="t[x]">{where}{inside}</testcase>'


def test_a_verdict_is_read_from_where_the_test_left_it(tmp_path: Path) -> None:
    path = junit(tmp_path, judged(tmp_path, '<failure message="SPIN">..</failure>'))
    assert read(path) == (TestResult("t[x]", FAILED, SPIN, "many faults", "/b /m ab"),)


def test_a_test_without_a_verdict_has_its_trouble(tmp_path: Path) -> None:
    path = junit(tmp_path, '<testcase name="t"><error message="no lab"/></testcase>')
    assert read(path) == (TestResult("t", ERROR, None, "no lab"),)


def test_the_trouble_is_told_without_where_its_logs_are(tmp_path: Path) -> None:
    message = "failed on setup with &quot;Failed: harness trouble (SetupError): no boot; logs: x"
    path = junit(tmp_path, f'<testcase name="t"><error message="{message}"/></testcase>')
    assert read(path)[0].text == "no boot"


def test_trouble_in_the_tear_down_does_not_hide_a_failure_but_a_pass(tmp_path: Path) -> None:
    trouble = '<testcase name="t[x]"><error message="QEMU will not die"/></testcase>'
    failed = judged(tmp_path, '<failure message="SPIN"/>')
    assert [test.outcome for test in read(junit(tmp_path, failed, trouble))] == [FAILED]
    assert [test.outcome for test in read(junit(tmp_path, trouble, failed))] == [FAILED]
    passed = judged(tmp_path)
    assert [test.outcome for test in read(junit(tmp_path, passed, trouble))] == [ERROR]


def test_an_expected_failure_is_no_pass(tmp_path: Path) -> None:
    path = junit(tmp_path, judged(tmp_path, '<skipped type="pytest.xfail" message="known"/>'))
    assert sort(RunResult(read(path))) is Sort.NOTHING


def test_a_missing_or_broken_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.xml"):
        read(tmp_path / "none.xml")
    (tmp_path / "junit.xml").write_text("<testsuites><testcase ")
    with pytest.raises(ValueError, match=r"junit\.xml"):
        read(tmp_path / "junit.xml")
    path = junit(tmp_path, judged(tmp_path))
    for text in ("", "[]", "{}"):
        (tmp_path / "verdict.json").write_text(text)
        with pytest.raises(ValueError, match=r"verdict\.json"):
            read(path)
    with pytest.raises(ValueError, match="faster"):
        read(junit(tmp_path, judged(tmp_path, verdict="faster")))


# --- whose fault a build is ---

QUOTED = '   12 |         pr_err("out of memory")'  # a line of the source, in the compiler's words


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (LaunchError("compiling", ["make"], 2, "x.c:1: error: no"), "does_not_build"),
        (LaunchError("compiling", ["make"], 2, "fatal error: Killed signal"), "trouble"),
        (LaunchError("compiling", ["make"], 2, "internal compiler error: x"), "trouble"),
        (LaunchError("compiling", ["make"], 2, "collect2: fatal error: ld: [Killed]"), "trouble"),
        (LaunchError("compiling", ["make"], 2, "make: *** [Makefile:1: x.o] Killed"), "trouble"),
        (LaunchError("compiling", ["make"], 2, "make: *** [x.o] Error 137"), "trouble"),
        (LaunchError("compiling", ["make"], 2, "cc1: out of memory allocating 9 bytes"), "trouble"),
        (
            LaunchError("compiling", ["make"], 2, "ld: final link failed: memory exhausted"),
            "trouble",
        ),
        (LaunchError("compiling", ["make"], 2, "ccache: error: no such directory"), "trouble"),
        (LaunchError("compiling", ["make"], 2, f"x.c:1: error: no\n{QUOTED}"), "does_not_build"),
        (LaunchError("compiling", ["make"], 137, "x.c:1: error: no"), "trouble"),
        (LaunchError("compiling", ["make"], None, "still running"), "trouble"),
        (LaunchError("mmdebstrap", ["mmdebstrap"], 1, "no"), "trouble"),
        (SetupError("the disk is full"), "trouble"),
        (CacheMissError("no network"), "trouble"),
        (UsageError("no such tree"), "trouble"),
    ],
)
def test_only_a_failed_make_is_the_commits_fault(error: HostfaultError, blamed: str) -> None:
    assert build.blame(error) == blamed


@pytest.mark.parametrize(
    "line",
    [
        "cc1: out of memory allocating 65536 bytes after a total of 1081344 bytes",
        "ld: final link failed: memory exhausted",
        "sh: 1: cannot fork: Cannot allocate memory",
        "ccache: error: failed to create temporary file",
        "make[3]: *** [scripts/Makefile.build:287: x.o] Error 137",
        "collect2: fatal error: ld terminated with signal 9 [Killed]",
    ],
)
def test_what_the_machine_is_to_blame_for_is_among_the_lines_that_are_kept(line: str) -> None:
    output = f"  CC x.o\n{line}\nmake: *** [Makefile:2: x.o] Error 1\n"
    error = LaunchError("compiling", ["make"], 2, error_lines(output))
    assert build.blame(error) == "trouble"


# --- whether the machine can compile ---


class Compiler:
    """Stands in for the build root, and notes the ccache directories that it was given."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.ccaches: list[Path] = []

    def __call__(self, tree: Path, root: BuildRoot, release: str) -> None:
        assert (tree / "Makefile").read_text() == "of the base"
        assert not root.ccache.exists()
        self.ccaches.append(root.ccache)
        if self.fails:
            raise LaunchError("compiling", ["make"], 2, "x.c:1: error: no")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    tree = tmp_path / "base"
    tree.mkdir()
    (tree / "Makefile").write_text("of the base")
    base = Base("key", "7.3.4", tmp_path, tmp_path, tree)
    root = BuildRoot("trixie", tmp_path, "", tmp_path / "shared-ccache")
    compiler = Compiler()
    monkeypatch.setattr(build, "packaged_base", lambda _entry, _cache: base)
    monkeypatch.setattr(build, "build_root", lambda _cache, _suite: root)
    monkeypatch.setattr(build, "compile_modules", compiler)
    return compiler


def test_what_was_compiled_before_does_not_prove_that_this_machine_can(
    compiler: Compiler, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        assert build.compile_afresh("7.3.4", cache) == {"compiled": "7.3.4"}
    assert len(set(compiler.ccaches)) == 2
    assert tmp_path / "shared-ccache" not in compiler.ccaches


@pytest.mark.parametrize("fails", [False, True])
def test_the_proof_that_this_machine_can_compile_leaves_nothing(
    compiler: Compiler, tmp_path: Path, fails: bool
) -> None:
    compiler.fails = fails
    with suppress(LaunchError):
        build.compile_afresh("7.3.4", Cache(tmp_path / "cache"))
    assert len(compiler.ccaches) == 1
    assert [each for each in (tmp_path / "cache").rglob("*") if each.is_dir()] == [
        tmp_path / "cache" / build.COMPILED
    ]


# --- the fixes ---

FIXED, UNFIXED = (PASSED, VerdictKind.VM_EXIT), (FAILED, SPIN)


def coming_to(runs: dict[str, RunResult]) -> fixes.Test:
    """Stands in for pytest: what each kernel comes to."""

    def run(kernel: str, folder: Path) -> RunResult:
        assert folder.name == kernel
        if kernel not in runs:
            raise BrokenHarnessError("no test is selected")
        return runs[kernel]

    return run


@pytest.mark.parametrize(
    ("cases", "code", "words"),
    [
        ([FIXED, (PASSED, OK)], fixes.ALL_RIGHT, "| ok, vm-exit | fixed | "),
        ([FIXED, UNFIXED], fixes.NOT_FIXED, "    t1: spin: "),
        ([FIXED, (ERROR, None)], fixes.TROUBLE, "    t1: error: "),
        ([FIXED, (SKIPPED, None)], fixes.TROUBLE, "    t1: skipped: "),
        ([(PASSED, OK)], fixes.TROUBLE, "    no case ended in vm-exit"),
        ([], fixes.TROUBLE, "| no verdict: no test ran | not as it must be | "),
    ],
)
def test_a_fix_is_one_if_every_case_passes_and_one_exits(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cases: list[tuple[TestOutcome, VerdictKind | None]],
    code: int,
    words: str,
) -> None:
    tests = coming_to({"7.3.4+one": run_of(*cases)})
    assert fixes.check(tests, ["7.3.4"], ["one"], tmp_path) == code
    assert words in capsys.readouterr().out


def test_every_fix_is_tested_on_every_kernel_whatever_came_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"6.12+two": run_of(FIXED), "7.3.4+one": run_of(UNFIXED), "7.3.4+two": run_of(FIXED)}
    assert (
        fixes.check(coming_to(runs), ["7.3.4", "6.12"], ["one", "two"], tmp_path) == fixes.TROUBLE
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fixes: ")]
    assert [line.split(" | ")[0] for line in lines] == [
        "fixes: 7.3.4+one",
        "fixes: 7.3.4+two",
        "fixes: 6.12+one",
        "fixes: 6.12+two",
    ]


# --- packaged kernels ---

NAMES = ["6.1", "6.12", "6.16", "6.17", "6.18", "7.2", "7.3"]


class Kernels:
    """What each of NAMES is, one letter each; notes which were asked for."""

    def __init__(self, kinds: str) -> None:
        self._kinds = dict(zip(NAMES, kinds, strict=True))
        self.asked: list[str] = []

    def __call__(self, name: str) -> Decision:
        self.asked.append(name)
        return {"g": GOOD, "b": BAD, "?": UNTESTABLE}[self._kinds[name]]


@pytest.mark.parametrize("fixed_from", range(1, 7))
def test_the_first_kernel_that_differs_is_found_wherever_it_is(fixed_from: int) -> None:
    kernels = Kernels("b" * fixed_from + "g" * (7 - fixed_from))
    found = search(NAMES, kernels)
    assert (found.older, found.newer) == (NAMES[fixed_from - 1], NAMES[fixed_from])
    assert (found.old, found.new) == (BAD, GOOD)
    assert len(kernels.asked) <= 5


def test_neighbours_need_no_further_test() -> None:
    kernels = Kernels("gbbbbbb")
    assert search(NAMES[:2], kernels).newer == "6.12"
    assert kernels.asked == ["6.1", "6.12"]


def test_ends_that_agree_are_said_to_agree_and_nothing_else_is_tested() -> None:
    kernels = Kernels("bgggggb")
    assert search(NAMES, kernels) == Boundary("7.3", "7.3", BAD, BAD)
    assert kernels.asked == ["6.1", "7.3"]


def test_kernels_that_cannot_be_tested_are_gone_round() -> None:
    found = search(NAMES, Kernels("b??b?gg"))
    assert (found.older, found.newer, found.between) == ("6.17", "7.2", ("6.18",))
    assert search(NAMES, Kernels("b?bg?gg")) == Boundary("6.16", "6.17", BAD, GOOD)


@pytest.mark.parametrize("kinds", ["?bbbbbg", "bbbbbb?"])
def test_an_end_that_cannot_be_tested_is_no_end(kinds: str) -> None:
    with pytest.raises(UsageError, match="cannot be tested, so it can be no end"):
        search(NAMES, Kernels(kinds))


def test_a_range_takes_its_ends_and_all_between() -> None:
    assert between(NAMES, "6.12..6.17") == ["6.12", "6.16", "6.17"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("6.1", "not of the form OLDEST..NEWEST"),
        ("6.1..", "no kernel ''; known are 6.1, 6.12"),
        ("6.1..9.9", "no kernel '9.9'"),
        ("7.3..6.1", "7.3 is not older than 6.1"),
        ("7.3..7.3", "7.3 is not older than 7.3"),
    ],
)
def test_a_range_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        between(NAMES, text)
