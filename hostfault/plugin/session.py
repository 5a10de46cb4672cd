"""The pytest plugin: options, fixtures, known issues and the report at the end.

The scenario runs in a fixture and the test only asserts, so that harness trouble is pytest's
*error* and a bad verdict its *failure*.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress

import pytest

from hostfault.case import folder as files
from hostfault.case.model import Scenario
from hostfault.case.record import Record, UnmetError
from hostfault.case.settings import Settings
from hostfault.plugin import sets
from hostfault.plugin.cases import Case, group_by_snapshot
from hostfault.plugin.keeper import LabKeeper, as_outcome
from hostfault.plugin.options import add_options, from_config
from hostfault.plugin.progress import Progress
from hostfault.plugin.summary import (
    first_line,
    repeat_first_line_only,
    row_of,
    show_table,
    show_unfinished,
)
from hostfault.plugin.workers import row_of_worker
from hostfault.plumbing.errors import HostfaultError, SetupError, UsageError
from hostfault.plumbing.program import torn_down_by_signals
from hostfault.plumbing.text import harmless
from hostfault.report import artifacts
from hostfault.report.table import Row, Tone
from hostfault.report.verdict_json import properties, verdict_json
from hostfault.run.runner import CaseRunner


class HookSpecs:
    """Hooks that this plugin calls."""

    @pytest.hookspec(firstresult=True)
    def pytest_hostfault_lab(self, settings: Settings) -> CaseRunner | None:
        """Make the lab that runs the scenarios; the first answer is taken."""


@pytest.hookimpl(trylast=True)
def pytest_hostfault_lab(settings: Settings) -> CaseRunner:
    """The real lab; imported late, as most of the suite's own tests need none."""
    from hostfault.run.lab import Lab

    return Lab(settings)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make the hooks known."""
    pluginmanager.add_hookspecs(HookSpecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything runs."""
    try:
        settings = from_config(config)
        artifacts.check(settings)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    config.pluginmanager.register(HostfaultSession(config, settings), HostfaultSession.NAME)
    if threading.current_thread() is threading.main_thread():
        handlers = ExitStack()
        handlers.enter_context(torn_down_by_signals())
        config.add_cleanup(handlers.close)


_TROUBLE: dict[str, tuple[str, Tone]] = {"skipped": ("SKIP", "plain"), "failed": ("ERROR", "bad")}


class HostfaultSession:
    """One pytest session: its lab, and what became of its tests."""

    NAME = "hostfault-session"

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.settings = settings
        self.progress = Progress(config)
        self.artifacts = artifacts.Artifacts(settings, config.rootpath)
        self.keeper = LabKeeper(
            lambda: config.hook.pytest_hostfault_lab(settings=settings), self.progress
        )
        self._scenarios: dict[str, Scenario] = {}  # by node id, in the order of running
        self._records: dict[str, Record] = {}
        self._rows: dict[str, Row] = {}
        self._current = ""
        self._interrupted = False
        self._waiting_for = ""
        self._cleanup_trouble = ""

    # --- the way of a session, in order ---

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Run tests of one snapshot one after the other, and with time enough."""
        group_by_snapshot(items, scenario_of)
        if self.settings.cpu == "intel":
            _give_time(config, [item for item in items if scenario_of(item) is not None])

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember what is to be run, for the summary of a run that is interrupted."""
        for item in session.items:
            scenario = scenario_of(item)
            if scenario is not None:
                self._scenarios[item.nodeid] = scenario

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Open the lab before the first test that needs it.

        Outside of pytest-timeout's wrapper: fetching and building takes its own time.
        """
        if item.nodeid in self._scenarios:
            self._current = item.nodeid
            self.keeper.prepare()
        result = yield
        self._current = ""
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Show what a verdict is not, and no traceback of ours."""
        try:
            return (yield)
        except UnmetError as error:
            raise pytest.fail.Exception(harmless(str(error)), pytrace=False) from None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep what we say of a failure to one line where pytest repeats it."""
        report = yield
        if item.nodeid in self._scenarios and call.excinfo is not None:
            repeat_first_line_only(report, call.excinfo.value)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the row of a test."""
        scenario = self._scenarios.get(report.nodeid)
        if scenario is None:
            if row := row_of_worker(report):
                self._rows[report.nodeid] = row
            return
        record = self._records.get(report.nodeid)
        if report.when == "call" and record is not None:
            self._rows[report.nodeid] = row_of(report, record)
        elif not report.passed:
            word, tone = _TROUBLE[report.outcome]
            self._rows[report.nodeid] = Row(scenario, word, first_line(report), tone)

    def pytest_keyboard_interrupt(self) -> None:
        """Remember it for the summary."""
        self._interrupted = True
        self._waiting_for = self.progress.text

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Close the lab, after the fixtures."""
        try:
            self.keeper.close()
        except (HostfaultError, OSError) as error:
            self._cleanup_trouble = harmless(str(error))
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of verdicts, if a test came to one, and what was not finished."""
        if terminalreporter.config.option.collectonly:
            counts = (f"{name} {count}" for name, count in sets.load().counts().items())
            terminalreporter.write_line(f"cells of the sets of ci/matrix.toml: {', '.join(counts)}")
        rows = list(self._rows.values())
        if self.settings.hide_passes:
            rows = [row for row in rows if row.tone != "good"]
        if self._rows:
            show_table(terminalreporter, self.keeper.facts, rows, self.artifacts.directory)
        if self._interrupted and self._scenarios:
            done = {self._current, *self._rows}
            left = [test for test in self._scenarios if test not in done]
            if self._current or left:
                show_unfinished(terminalreporter, self._current, self._waiting_for, left)
        if self._cleanup_trouble:
            terminalreporter.section("clean-up")
            terminalreporter.write_line(self._cleanup_trouble, red=True)

    # --- what the fixtures need ---

    def run(self, item: pytest.Item, lab: CaseRunner, scenario: Scenario) -> Record:
        """Run one case and record it. Raises :class:`HostfaultError`."""
        folder = self.artifacts.folder(item.name)
        try:
            with self.progress.showing():
                record = lab.run(item.nodeid, scenario, folder)
        except HostfaultError as error:
            with suppress(OSError):
                (folder / files.ERROR).write_text(f"{type(error).__name__}: {error}\n")
            raise
        self._records[item.nodeid] = record
        try:
            artifacts.write_json(folder / files.VERDICT, verdict_json(record))
        except OSError as error:
            raise SetupError(f"cannot write the artifacts: {error}") from error
        return record


@pytest.fixture
def lab(pytestconfig: pytest.Config) -> CaseRunner:
    """The session's lab, opened for the first test that needs it."""
    session = _session(pytestconfig)
    with as_outcome(session.settings.require):
        found, _ = session.keeper.ready()
    return found


@pytest.fixture
def case(
    request: pytest.FixtureRequest, pytestconfig: pytest.Config, lab: CaseRunner, scenario: Scenario
) -> Case:
    """The test's ``scenario``, run and judged; the artifacts are written."""
    session = _session(pytestconfig)
    with as_outcome(session.settings.require):
        record = session.run(request.node, lab, scenario)
    request.node.user_properties += properties(record)
    _expect_the_known(request.node, record)
    return record


def _expect_the_known(item: pytest.Item, record: Record) -> None:
    """Mark the test as a known failure, strictly: a pass is a failure, too.

    A bad verdict other than the listed one gets no mark, and fails.
    """
    if record.issue is None:
        return
    if record.is_known or record.is_accepted:
        item.add_marker(pytest.mark.xfail(strict=True, reason=record.issue.reason))


def _give_time(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Let cases in Bochs take as many times longer as all that they wait for may.

    Not where a person has said how long a test may take.
    """
    from hostfault.host.bochs import BochsSpec  # only here: few runs need it

    usual = config.getini("timeout")
    if not usual or config.getoption("timeout") is not None:
        return
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(float(usual) * BochsSpec.slowness))


def scenario_of(item: pytest.Item) -> Scenario | None:
    """The scenario that a test asks the lab to run, if it does."""
    if "case" not in getattr(item, "fixturenames", ()):
        return None
    callspec = getattr(item, "callspec", None)
    scenario = callspec.params.get("scenario") if callspec is not None else None
    return scenario if isinstance(scenario, Scenario) else None


def _session(config: pytest.Config) -> HostfaultSession:
    session = config.pluginmanager.getplugin(HostfaultSession.NAME)
    assert isinstance(session, HostfaultSession)
    return session
