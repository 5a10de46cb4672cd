"""The plugin in whole pytest runs, with the project's real tests and a lab that only pretends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hostfault.plumbing.deadline import Deadline, poll

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
REAL_TESTS = HERE.parents[1] / "dax"

CONFTEST = f"""
import dataclasses, json, logging, pathlib
from hostfault.plumbing import errors
from hostfault.case.model import Kernel, Qemu, Verdict, VerdictKind, observation_from_json
from hostfault.case.record import LabFacts, Record
from hostfault.case import known_issues
pytest_plugins = ["hostfault.plugin.session"]
OBSERVATIONS = pathlib.Path({str(HERE.parents[1] / "observations")!r})
STOCK = Kernel("7.3", "7.3.4+deb13-cloud-amd64", pathlib.Path("k"), pathlib.Path("m"), True)
QEMU = Qemu("image", "11.1.3", ("qemu",))

class FakeLab:
    kernel = STOCK
    verdict = "spin"  # what every scenario ends in, or an exception to raise
    trouble = None  # what preparing ends in
    def __init__(self, settings):
        self.settings = settings
        self.say = logging.getLogger("hostfault.lab").info
    def __enter__(self):
        return self
    def __exit__(self, *what):
        pathlib.Path("lab-closed").touch()
    def facts(self):
        self.say("building the moon")
        if self.trouble:
            raise self.trouble
        reason = "no usable /dev/kvm: absent"
        return LabFacts("emulated", reason, self.kernel, STOCK.release, STOCK, QEMU)
    def run(self, test, scenario, folder):
        self.say("booting the guest")
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        path = OBSERVATIONS / "spin.apf-7.3.4.json"
        observation = observation_from_json(json.loads(path.read_text()))
        verdict = Verdict(VerdictKind(self.verdict), "64 faults on gfn 0xf8000", ("proof",))
        observation = dataclasses.replace(observation, scenario=scenario, recovery=None)
        issues = known_issues.load() if self.settings.known_issues else ()
        issue = known_issues.match(issues, self.kernel, scenario)
        phases = {{"guest boot": 4.5}}
        return Record(
            test, self.facts(), self.settings, observation, verdict, phases, False, issue, folder
        )

def pytest_hostfault_lab(settings):
    return FakeLab(settings)
"""
ONE = ("-k", "zero-load-apf")


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with the real test modules and the fake lab."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    for module in REAL_TESTS.glob("test_*.py"):
        (pytester.path / module.name).write_text(module.read_text())
        # The session around this test may have imported the original under the same name.
        monkeypatch.delitem(sys.modules, module.stem, raising=False)
    return pytester


def lab_that(suite: pytest.Pytester, **answers: str) -> None:
    """Let the fake lab answer so; the values are Python expressions."""
    lines = [f"FakeLab.{name} = {value}" for name, value in answers.items()]
    suite.makeconftest("\n".join([CONFTEST, *lines, ""]))


def folder_of_the_one(suite: pytest.Pytester) -> Path:
    return suite.path / ".hostfault/runs/last/test_truncate-virtiofs-dax-zero-load-apf"


# --- how long a case may take ---


@pytest.mark.parametrize(
    ("words", "seconds"),
    [((), []), (("--cpu", "intel"), [4500.0]), (("--cpu", "intel", "--timeout", "70"), [])],
)
def test_a_case_in_bochs_may_take_longer_unless_a_person_says_how_long(
    suite: pytest.Pytester, words: tuple[str, ...], seconds: list[float]
) -> None:
    suite.makeini("[pytest]\naddopts = -p no:cacheprovider\ntimeout = 900\n")
    note = """
def pytest_runtest_setup(item):
    found = [mark.args[0] for mark in item.iter_markers("timeout")]
    pathlib.Path("timeouts").write_text(json.dumps(found))
"""
    suite.makeconftest(CONFTEST + note)
    suite.runpytest(*ONE, *words)
    assert json.loads((suite.path / "timeouts").read_text()) == seconds


# --- verdicts become outcomes ---


def test_an_accepted_verdict_passes(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'task-error'", kernel="None")
    result = suite.runpytest("-k", "test_truncate")
    result.assert_outcomes(passed=12)
    assert result.ret == 0


def test_a_vm_exit_fails_when_only_the_task_will_do(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'vm-exit'", kernel="None")
    suite.runpytest(*ONE).assert_outcomes(passed=1)
    suite.runpytest(*ONE, "--accept", "task").assert_outcomes(failed=1)


def test_the_known_verdict_on_a_listed_kernel_is_an_expected_failure(
    suite: pytest.Pytester,
) -> None:
    result = suite.runpytest(*ONE, "-rx")
    result.assert_outcomes(xfailed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["XFAIL *zero-load-apf* - known issue kvm-apf-error: KVM ignores*"])


def test_a_pass_on_a_listed_kernel_fails(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'vm-exit'")
    result = suite.runpytest(*ONE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*XPASS(strict)*known issue kvm-apf-error*", "*passes in spite of known issue*"]
    )


@pytest.mark.parametrize("death", ["vmm-death", "guest-death", "host-death", "stall", "stale"])
def test_another_bad_verdict_on_a_listed_kernel_fails(suite: pytest.Pytester, death: str) -> None:
    lab_that(suite, verdict=f"'{death}'")
    result = suite.runpytest(*ONE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{death.upper()}: *", "evidence:", "  proof", "artifacts: *"])


def test_without_known_issues_the_same_spin_fails_and_says_so(suite: pytest.Pytester) -> None:
    result = suite.runpytest(*ONE, "--no-known-issues")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["SPIN: 64 faults on gfn 0xf8000", "artifacts: *zero-load-apf"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize(
    "kernel", ["dataclasses.replace(STOCK, packaged=False)", "None"], ids=["built", "local"]
)
def test_a_kernel_that_is_not_packaged_has_no_known_issue(
    suite: pytest.Pytester, kernel: str
) -> None:
    lab_that(suite, kernel=kernel)
    suite.runpytest(*ONE).assert_outcomes(failed=1)


def test_a_control_case_wants_one_verdict_exactly(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'ok'")
    result = suite.runpytest("-k", "test_control and load")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["expected task-error, got OK: *"])


def test_a_control_case_wants_its_signal(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'task-error'")  # but its observation has no signal in it
    result = suite.runpytest("-k", "guest-load")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["expected signal 7, got TASK-ERROR: *"])


# --- harness trouble ---


def test_harness_trouble_is_an_error_with_one_message_and_no_traceback(
    suite: pytest.Pytester,
) -> None:
    lab_that(suite, verdict="errors.LaunchError('QEMU', ['qemu', '-x'], 1, 'no such option')")
    result = suite.runpytest(*ONE)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["harness trouble (LaunchError): QEMU ended with code 1"])
    result.stdout.no_fnmatch_line("*conftest.py:*")
    result.stdout.no_fnmatch_line("*plugin.py:*")
    assert "no such option" in (folder_of_the_one(suite) / "error.txt").read_text()


@pytest.mark.parametrize("ci", ["", "true"], ids=["terminal", "ci"])
def test_a_lab_that_cannot_be_prepared_is_told_in_full_only_once(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    monkeypatch.setenv("CI", ci)  # there pytest repeats the messages whole
    lab_that(suite, trouble="errors.SetupError('no mirror answers\\nthe whole story')")
    result = suite.runpytest("-k", "zero-load")
    result.assert_outcomes(errors=2)
    text = result.stdout.str()
    assert text.count("the whole story") == 1
    assert "no lab, as reported above: no mirror answers" in text


def test_an_error_of_the_system_while_preparing_is_an_error_of_each_test(
    suite: pytest.Pytester,
) -> None:
    lab_that(suite, trouble="OSError(28, 'No space left on device')")
    result = suite.runpytest("-k", "zero-load")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["harness trouble (SetupError): *No space left on device"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_name_that_does_not_exist_is_a_usage_error(suite: pytest.Pytester) -> None:
    lab_that(suite, trouble="errors.UsageError('no kernel 9.9; there are 6.1, 7.3')")
    result = suite.runpytest("--host-kernel", "9.9")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no kernel 9.9; there are 6.1, 7.3"])
    assert (suite.path / "lab-closed").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--host", "mars"),
        ("--host", "ssh://a", "--host", "local"),
        ("--host", "ssh://a", "--host", "ssh://b"),
        ("--accept", "all"),
        ("--require", "luck"),
        ("--artifacts", "."),
        ("--artifacts", "/proc/nope"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_a_usage_error_before_anything_runs(
    suite: pytest.Pytester, options: tuple[str, str]
) -> None:
    result = suite.runpytest(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str()
    assert not (suite.path / "lab-closed").exists()


def test_each_worker_has_a_machine_of_its_own_and_the_table_has_them_all(
    suite: pytest.Pytester,
) -> None:
    pytest.importorskip("xdist")
    lab_that(suite, verdict="'spin'", kernel="None")
    machines = ("--host", "ssh://a", "--host", "ssh://b")
    result = suite.runpytest_subprocess("-n", "2", *machines, "-k", "zero-load")
    result.assert_outcomes(failed=2)
    for machine in ("a", "b"):
        assert f"on ssh://{machine}" in result.stdout.str()
    result = suite.runpytest_subprocess("-n", "3", *machines)
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_artifacts_that_exist_are_taken_when_overwriting(suite: pytest.Pytester) -> None:
    for _ in range(2):
        options = ("--artifacts", "evidence", "--artifacts-overwrite")
        suite.runpytest(*ONE, *options).assert_outcomes(xfailed=1)
    assert len(list((suite.path / "evidence").iterdir())) == 1


MISSING = "errors.MissingCapabilityError('shared-memory-device', 'QEMU 7.2 is too old')"


def test_a_missing_capability_skips_and_says_which(suite: pytest.Pytester) -> None:
    lab_that(suite, trouble=MISSING)
    result = suite.runpytest("-k", "zero-load", "-rs")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*SKIP*shared-memory-device: QEMU 7.2 is too old*"])


@pytest.mark.parametrize("name", ["shared-memory-device", "all"])
def test_a_required_capability_that_is_missing_is_an_error(
    suite: pytest.Pytester, name: str
) -> None:
    lab_that(suite, trouble=MISSING)
    result = suite.runpytest("-k", "zero-load", "--require", name)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["--require shared-memory-device: QEMU 7.2 is too old"])


def test_a_machine_without_kvm_where_it_is_required_is_an_error(suite: pytest.Pytester) -> None:
    lab_that(suite, trouble="errors.MissingCapabilityError('kvm', 'no usable /dev/kvm: absent')")
    result = suite.runpytest(*ONE, "--require", "kvm")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["--require kvm: no usable /dev/kvm: absent"])


# --- what is left to read ---


def test_every_test_leaves_its_verdict(suite: pytest.Pytester) -> None:
    suite.runpytest(*ONE)
    verdict = json.loads((folder_of_the_one(suite) / "verdict.json").read_text())
    assert verdict["verdict"] == "spin"
    assert verdict["test"].endswith("test_truncate[virtiofs-dax-zero-load-apf]")


def test_junit_properties_carry_the_verdict(suite: pytest.Pytester) -> None:
    suite.runpytest(*ONE, "--junitxml=junit.xml")
    tree = ElementTree.parse(suite.path / "junit.xml")
    properties = {
        node.get("name"): node.get("value") for node in tree.findall(".//testcase//property")
    }
    assert properties["verdict"] == "spin"
    assert properties["known_issue"] == "kvm-apf-error"
    assert properties["seconds.guest boot"] == "4.5"


def test_the_table_closes_the_run(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    result = suite.runpytest("-k", "zero-load")
    result.stdout.fnmatch_lines(
        [
            "*= verdicts =*",
            "host: emulated, Debian 7.3.4+deb13-cloud-amd64, QEMU 11.1.3   (no usable /dev/kvm: *)",
            "virtiofs-dax  zero  load  async-pf     SPIN  64 faults on gfn 0xf8000   known issue: "
            "kvm-apf-error",
            "virtiofs-dax  zero  load  no-async-pf  SPIN  64 faults *",
            "artifacts: *",
        ]
    )


def test_passes_can_be_hidden(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="'ok'", kernel="None")
    result = suite.runpytest("-k", "load-apf", "--hide-passes")
    text = result.stdout.str()
    assert re.search(r"guest +load", text)
    assert not re.search(r"zero +load", text)


def test_waits_are_shown_once_and_outside_of_the_results(suite: pytest.Pytester) -> None:
    result = suite.runpytest("-k", "zero-load")
    lines = result.stdout.str().splitlines()
    assert [line for line in lines if line.startswith("... ")] == [
        "... building the moon",
        "... booting the guest",
    ]


def test_plain_tests_get_no_lab_no_table_and_no_directory(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_plain(): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert "verdicts" not in result.stdout.str()
    assert not (pytester.path / "lab-closed").exists()
    assert not (pytester.path / ".hostfault").exists()


def test_tests_of_one_machine_run_one_after_the_other(suite: pytest.Pytester) -> None:
    result = suite.runpytest("--collect-only", "-q")
    kinds = [
        "noapf" if "noapf" in line else "apf"
        for line in result.stdout.str().splitlines()
        if "::" in line
    ]
    assert kinds == sorted(kinds)
    assert len(kinds) == 24


def test_a_case_is_picked_by_its_name_and_picks_no_other(suite: pytest.Pytester) -> None:
    result = suite.runpytest("--collect-only", "-q", *ONE)
    result.stdout.fnmatch_lines(["test_truncate.py::test_truncate[[]virtiofs-dax-zero-load-apf]"])
    result.stdout.fnmatch_lines(["1/24 tests collected*"])


# --- ends that nobody planned ---


def test_ctrl_c_says_what_was_not_finished_and_closes_the_lab(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="KeyboardInterrupt()")
    result = suite.runpytest("-k", "zero-load", no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "*= not finished =*",
            "interrupted: *zero-load-apf]   (while: booting the guest)",
            "not begun:   *zero-load-noapf]",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    assert (suite.path / "lab-closed").exists()


def test_trouble_while_cleaning_up_is_shown_and_fails_the_run(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        CONFTEST + "\ndef leave(self, *what):\n    raise errors.SetupError('QEMU will not die')\n"
        "FakeLab.__exit__ = leave\n"
    )
    result = suite.runpytest(*ONE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*= clean-up =*", "QEMU will not die"])


def test_an_error_of_the_system_while_cleaning_up_hides_no_verdict(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        CONFTEST + "\ndef leave(self, *what):\n    raise FileNotFoundError(2, 'gone', 'entry')\n"
        "FakeLab.__exit__ = leave\n"
    )
    result = suite.runpytest(*ONE)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*= verdicts =*", "*= clean-up =*", "*gone: 'entry'"])
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_tears_down_like_ctrl_c(suite: pytest.Pytester, number: signal.Signals) -> None:
    suite.makeconftest(
        CONFTEST + "\ndef run(self, test, scenario, folder):\n"
        "    import os, select\n"
        "    pathlib.Path('running').write_text(str(os.getpid()))\n"
        "    select.select([], [], [], 60)\n"
        "FakeLab.run = run\n"
    )
    before = signal.signal(number, signal.SIG_DFL)  # nohup(1) may have had it ignored
    try:
        child = suite.popen(
            [*suite._getpytestargs(), *ONE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    finally:
        signal.signal(number, before)
    running = suite.path / "running"
    deadline = Deadline(30.0, "the inner pytest to run its test")
    poll(deadline, lambda: (running.exists() and running.read_text()) or None)
    child.send_signal(number)
    output, _ = child.communicate(timeout=30)
    assert child.returncode == pytest.ExitCode.INTERRUPTED
    assert b"not finished" in output
    assert (suite.path / "lab-closed").exists()


def test_what_a_guest_wrote_reaches_the_terminal_spelt_out(suite: pytest.Pytester) -> None:
    lab_that(suite, verdict="errors.HostfaultError('console: \\x1b[2J\\n::add-mask::x')")
    text = suite.runpytest(*ONE).stdout.str()
    assert "\x1b[2J" not in text
    assert "\n::add-mask" not in text
    assert r"console: \x1b[2J" in text


def test_the_evidence_is_for_its_owner_alone(suite: pytest.Pytester) -> None:
    suite.runpytest(*ONE)
    folder = folder_of_the_one(suite)
    assert folder.stat().st_mode & 0o077 == 0
    assert folder.parent.stat().st_mode & 0o077 == 0
