"""``report.html``: what one looks at in the morning. One file, no network, no script.

Whatever a guest, a QEMU or a kernel said is in there, so everything is escaped by the template
engine, and the page forbids itself scripts and connections should that ever fail.
"""

from __future__ import annotations

import json
import os.path
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hostfault.nightly import plots, results, summary
from hostfault.nightly.digest import Digest
from hostfault.nightly.news import Kind
from hostfault.nightly.results import Key, Result, Status, short
from hostfault.nightly.store import Evidence
from hostfault.plumbing.errors import SetupError

TEMPLATE = Path(__file__).with_name("report.html.j2")
LOGS = (
    ("error.txt", "What went wrong"),
    ("registers.txt", "Registers of the virtual CPUs"),
    ("trace.txt", "Trace window"),
    ("host-kernel.log", "The host's kernel, from the fault on"),
    ("guest-console.log", "The guest's console"),
    ("guest-qemu.log", "The guest's QEMU"),
    ("probe.jsonl", "The guest task, step by step"),
    ("daxfs.jsonl", "The back-end: what it mapped and unmapped"),
    ("host-serial.log", "The emulated host's console"),
    ("host-qemu.log", "The emulated host's QEMU"),
)
LOG_LIMIT = 12_000  # characters of the end of each
_SHOWN_ELSEWHERE = {"verdict", "summary", "evidence", "test", "seconds", "options"}
_MARKS = {
    "good": "✓",
    "stopped": "◧",
    "known": "≈",
    "bad": "✗",
    "trouble": "?",
    "skipped": "–",  # noqa: RUF001 (a dash, as a mark)
    "none": "·",
}
_LEGEND = (
    ("good", "as it should be"),
    ("stopped", "the whole machine was stopped (vm-exit)"),
    ("known", "bad, as known: a known issue, or as the baseline says"),
    ("bad", "bad, and not as it was"),
    ("trouble", "nothing learnt: the tools or the test failed"),
    ("skipped", "skipped"),
    ("none", "not run"),
)


@dataclass(frozen=True)
class Box:
    """One box, of the grid or of a history."""

    tone: str  # a key of _MARKS
    word: str
    title: str = ""
    anchor: str = ""  # of its details
    flag: str = ""  # "worse", "better", ...: news
    flaky: bool = False

    @property
    def mark(self) -> str:
        """A sign for those who do not see the colour."""
        return _MARKS[self.tone]


@dataclass(frozen=True)
class Details:
    """What a click on a cell shows."""

    anchor: str
    cell: Box
    kernel: str
    case: str
    node: str
    result: Result
    evidence: Sequence[str]
    replay: str
    plot: str  # SVG
    facts: Sequence[tuple[str, str]]
    phases: Sequence[tuple[str, float]]
    frames: Sequence[Mapping[str, Any]]  # the trace's counts at the end
    logs: Sequence[tuple[str, str, str]]  # title, file, text
    runs: Sequence[Result]


def text(digest: Digest, evidence: Evidence) -> str:
    """The whole file. Raises :class:`SetupError` if jinja2 or matplotlib are missing."""
    anchors = {key: f"c{number}" for number, key in enumerate(digest.cells)}
    cells = {key: _cell(digest, key, anchors) for key in _grid_keys(digest)}
    rows = [
        (group, name, [cells[Key(kernel, case)] for kernel in digest.kernels])
        for group, name, case in _names(digest.cases)
    ]
    return _render(
        digest=digest,
        rows=rows,
        prefix=_prefix(digest.cases),
        cells=cells,
        legend=[(tone, _MARKS[tone], words) for tone, words in _LEGEND],
        changes=digest.changes,
        news=[item for item in digest.items if item.kind is not Kind.TROUBLE],
        details=[_details(digest, evidence, key, cells[key]) for key in digest.cells],
        histories=_histories(digest),
        nights=[night.name for night, _ in reversed(digest.before)] + [digest.night.name],
        phase_table=_phase_table(digest),
        phase_plot=_phase_plot(digest),
        anchor=lambda key: anchors.get(key, ""),
        totals=_totals(cells),
    )


def _grid_keys(digest: Digest) -> list[Key]:
    return [Key(kernel, case) for case in digest.cases for kernel in digest.kernels]


def tone(result: Result | None, *, worse: bool) -> str:
    """How a cell looks: bad and known is another thing than bad and new."""
    if result is None:
        return "none"
    if result.outcome is Status.SKIPPED:
        return "skipped"
    if result.outcome.is_trouble:
        return "trouble"
    return "bad" if worse else ("good", "stopped", "known")[results.rank(result)]


def _cell(digest: Digest, key: Key, anchors: Mapping[Key, str]) -> Box:
    result = digest.cells.get(key)
    item = next((each for each in digest.items if each.result.key == key), None)
    news_of_cell = item.kind.value if item and item.kind is not Kind.TROUBLE else ""
    return Box(
        tone=tone(result, worse=item is not None and item.kind is Kind.WORSE),
        word=result.word if result else "not run",
        title=result.summary if result else "",
        anchor=anchors.get(key, ""),
        flag=news_of_cell,
        flaky=key in digest.flakes,
    )


def _prefix(cases: Sequence[str]) -> str:
    """What all cases' names begin with, up to a dash: said once, not in every row."""
    names = [short(case).partition(" ")[2] for case in cases]
    if len(set(names)) < 2:
        return ""
    common = os.path.commonprefix(names)  # noqa: RUF071 (by characters is what is wanted)
    return common[: common.rfind("-") + 1]


def _names(cases: Sequence[str]) -> list[tuple[str, str, str]]:
    """Group, name within it, and node id of every case."""
    prefix = _prefix(cases)
    found = []
    for case in cases:
        group, _, name = short(case).partition(" ")
        found.append((group, name.removeprefix(prefix).replace("-", " ") or group, case))
    return found


def _details(digest: Digest, evidence: Evidence, key: Key, cell: Box) -> Details:
    result = digest.cells[key]
    observation = _observation(evidence, result)
    series = plots.series_of(observation)
    samples = observation.get("samples") or [{}]
    frames = samples[-1].get("faults") or [] if isinstance(samples[-1], Mapping) else []
    logs = [
        (title, name, said)
        for name, title in LOGS
        if (said := evidence.text(result, name)[-LOG_LIMIT:].strip())
    ]
    return Details(
        anchor=cell.anchor,
        cell=cell,
        kernel=key.kernel,
        case=short(key.case),
        node=key.case,
        result=result,
        evidence=[str(line) for line in result.record.get("evidence") or []],
        replay=summary.replay(digest, result),
        plot=plots.of_case(series, cell.anchor) if series else "",
        facts=_facts(result.record),
        phases=list(result.phases.items()),
        frames=[each for each in frames if isinstance(each, Mapping)][:12],
        logs=logs,
        runs=[each for each in digest.runs if each.key == key],
    )


def _observation(evidence: Evidence, result: Result) -> dict[str, Any]:
    """observation.json, or what samples.jsonl has where no verdict was reached."""
    try:
        found = json.loads(evidence.text(result, "observation.json"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    samples = []
    for line in evidence.text(result, "samples.jsonl").splitlines():
        try:
            samples.append(json.loads(line))
        except ValueError:
            continue  # cut off
    return {"samples": samples}


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a verdict.json says of its run, whatever a newer suite may add, on one level."""
    found: list[tuple[str, str]] = []
    for name, value in record.items():
        if name in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, Mapping):
            release = value.get("release") or value.get("version") or json.dumps(value)
            asked = value.get("name") or value.get("source")
            found.append((name, f"{release} ({asked})" if asked else str(release)))
        elif isinstance(value, list):
            found.append((name, ", ".join(map(str, value))))
        elif value not in (None, ""):
            found.append((name, str(value)))
    return [(name.replace("_", " "), value[:400]) for name, value in found]


@dataclass(frozen=True)
class History:
    """One kernel's cases over the nights."""

    kernel: str
    rows: Sequence[tuple[str, Sequence[Box]]]  # a case's name, and a cell a night, oldest first

    @property
    def changed(self) -> int:
        """How many cases did not look the same in all nights."""
        return sum(len({cell.tone for cell in strip} - {"none"}) > 1 for _, strip in self.rows)


def _histories(digest: Digest) -> list[History]:
    nights = [
        (night.name, results.latest(found), frozenset(() if night.accepted else night.worse))
        for night, found in reversed(digest.before)
    ]
    worse = frozenset(item.result.key for item in digest.of(Kind.WORSE))
    nights.append((digest.night.name, dict(digest.cells), worse))
    found = []
    for kernel in digest.kernels:
        rows = []
        for group, name, case in _names(digest.cases):
            key = Key(kernel, case)
            strip = [_strip_cell(cells.get(key), night, key in bad) for night, cells, bad in nights]
            rows.append((f"{group} {name}" if name != group else name, strip))
        found.append(History(kernel, rows))
    return found


def _strip_cell(result: Result | None, night: str, worse: bool) -> Box:
    word = result.word if result else "not run"
    said = f"{night}: {word}" + (f", {result.summary}" if result and result.summary else "")
    return Box(tone(result, worse=worse), word, said)


def _phases(found: Sequence[Result]) -> dict[str, float]:
    """Mean seconds of a test by phase."""
    phases: dict[str, list[float]] = {}
    told = [each for each in found if each.phases]
    for result in told:
        for phase, seconds in result.phases.items():
            phases.setdefault(phase, []).append(seconds)
    return {phase: sum(each) / len(told) for phase, each in phases.items()}


def _phase_table(digest: Digest) -> list[tuple[str, float, float | None]]:
    """Phase, tonight, median of the nights before."""
    tonight = _phases(digest.runs)
    before = [_phases(found) for _, found in digest.before]
    rows: list[tuple[str, float, float | None]] = []
    for phase, seconds in sorted(tonight.items(), key=lambda pair: -pair[1]):
        known = [each[phase] for each in before if phase in each]
        rows.append((phase, seconds, statistics.median(known) if known else None))
    return rows


def _phase_plot(digest: Digest) -> str:
    nights = [(night.name, _phases(found)) for night, found in reversed(digest.before)]
    nights.append((digest.night.name, _phases(digest.runs)))
    nights = [(name, phases) for name, phases in nights if phases]
    return plots.of_phases(nights, "phases") if nights else ""


def _totals(cells: Mapping[Key, Box]) -> list[tuple[str, str, int, str]]:
    """Tone, mark, number and words of what there is tonight."""
    found = []
    for each, words in _LEGEND:
        number = sum(cell.tone == each for cell in cells.values())
        if number:
            found.append((each, _MARKS[each], number, words))
    return found


def _render(**context: object) -> str:
    try:
        jinja2 = import_module("jinja2")
        markup = import_module("markupsafe").Markup
    except ImportError as error:
        raise SetupError("Jinja2 is missing: start it by ci/nightly") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["short"] = short
    environment.filters["svg"] = markup  # ours, from plots.py
    environment.filters["hex"] = lambda value: f"{value:#x}" if isinstance(value, int) else value
    return str(environment.from_string(TEMPLATE.read_text()).render(**context)) + "\n"
