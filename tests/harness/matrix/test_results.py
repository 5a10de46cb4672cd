"""What was measured: kept, read, compared, and told."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from hostfault.case.model import Scenario
from hostfault.matrix import ab, page, picture, result
from hostfault.matrix.__main__ import DATA, DOCUMENT, FIXES, main, ordered
from hostfault.matrix.compare import Pair, pairs, unknown
from hostfault.matrix.measure import Pytest, measure, options_of
from hostfault.matrix.result import ERROR, CellResult, Run
from hostfault.plugin import sets
from hostfault.plugin.cases import case_id
from hostfault.plumbing.errors import BrokenHarnessError, UsageError

FULL = Scenario("ram", "full", "load", async_pf=True)
ZERO = Scenario("virtiofs-dax", "zero", "load", async_pf=True)
ZERO_STORE = Scenario("virtiofs-dax", "zero", "store", async_pf=True)
CONTROL = Scenario("virtiofs-dax", "none", "load", async_pf=True)


def run(kernel: str, **answers: str) -> Run:
    """A run in which FULL, ZERO, ... came to an answer such as "spin; goes-on"."""
    cells = {"full": FULL, "zero": ZERO, "zero_store": ZERO_STORE, "control": CONTROL}
    results = {}
    for name, answer in answers.items():
        verdict, _, recovery = answer.partition("; ")
        results[case_id(cells[name])] = CellResult(cells[name], verdict, recovery, "made up", 1.5)
    return Run(kernel, "7.3.4-made-up", "", ("2026-11-24",), results)


STOCK = run("7.3.4", full="spin; goes-on", zero="spin; goes-on", control="ok")
FIXED = run("7.3.4+fix", full="vm-exit; lost", zero="task-error", control="ok")


def compared(base: Run, patched: Run) -> ab.Comparison:
    return ab.Comparison(True, base, patched, tuple(base.results))


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    runs = {each.kernel: each for each in (STOCK, FIXED)}
    result.save(runs, tmp_path / "data.json")
    assert result.load(tmp_path / "data.json") == runs
    assert result.load(tmp_path / "nothing.json") == {}


def test_a_later_answer_takes_the_place_of_an_earlier_one() -> None:
    later = Run("7.3.4", "new", "", ("2026-11-25",), run("7.3.4", zero="task-error").results)
    merged = STOCK.merged(later)
    assert merged.dates == ("2026-11-24", "2026-11-25")
    assert merged.results[case_id(ZERO)].verdict == "task-error"
    assert merged.results[case_id(FULL)] == STOCK.results[case_id(FULL)]


@pytest.mark.parametrize(
    ("base", "patched", "verdict", "recovery"),
    [
        ({"zero": "spin; goes-on"}, {"zero": "vm-exit; lost"}, -1, 2),
        ({"zero": "spin; goes-on"}, {"zero": "task-error"}, -2, 0),
        ({"zero": "spin; goes-on"}, {"zero": "vm-exit; goes-on-after-cont"}, -1, 1),
        ({"zero": "task-error"}, {"zero": "guest-death"}, 4, 0),
        ({"zero": "spin; lost"}, {"zero": "spin; goes-on"}, 0, -2),
        ({"zero": "spin; not-undoable"}, {"zero": "spin; lost"}, 0, 0),
        ({"control": "ok"}, {"control": "task-error"}, 3, 0),
        ({"control": "ok"}, {"control": "spin"}, 3, 0),
    ],
)
def test_the_verdict_and_the_recovery_are_compared_apart(
    base: dict[str, str], patched: dict[str, str], verdict: int, recovery: int
) -> None:
    (pair,) = pairs(run("a", **base).results, run("b", **patched).results)
    assert (pair.verdict, pair.recovery) == (verdict, recovery)
    assert pair.is_worse == (verdict > 0 or recovery > 0)


def test_trouble_is_compared_with_nothing() -> None:
    broken = run("b", zero=ERROR, control="ok")
    assert [pair.base.scenario for pair in pairs(STOCK.results, broken.results)] == [CONTROL]
    assert unknown(STOCK.results, broken.results, list(STOCK.results)) == [
        case_id(FULL),
        case_id(ZERO),
    ]


def test_only_a_failure_fails_the_same() -> None:
    both = [Pair(each, each) for each in STOCK.results.values()]
    assert [pair.fails_the_same for pair in both] == [True, True, False]


# --- ci/ab ----------------------------------------------------------------------------------------


def test_ab_says_that_the_spin_is_gone_and_that_recovery_is_lost() -> None:
    spin, recovery = ab.conclusions(compared(STOCK, FIXED))
    assert re.findall(r"\bspin\b|\bgone\b|\d+", spin) == ["spin", "gone", "2"]
    assert re.findall(r"\blost\b|\bram, full\b|\d+", recovery) == ["lost", "ram, full", "1"]
    assert compared(STOCK, FIXED).code == ab.SOMEWHERE_WORSE


def test_ab_tells_what_fails_the_same_from_what_differs() -> None:
    half = run("7.3.4+half", full="spin; goes-on", zero="vm-exit; goes-on", control="ok")
    told = list(ab.report(compared(STOCK, half)))
    differs, same = (
        told.index("\ndiffers:"),
        told.index("\nfails exactly the same with and without:"),
    )
    assert told[differs + 1 : same] == [
        "  virtiofs-dax-zero-load-apf: spin; goes-on -> vm-exit; goes-on   (verdict better)"
    ]
    assert told[same + 1] == "  ram-full-load-apf: spin; goes-on"
    assert compared(STOCK, half).code == ab.NOWHERE_WORSE


@pytest.mark.parametrize(
    ("patched", "code"),
    [
        (STOCK, ab.NOWHERE_WORSE),
        (run("b", full="spin; goes-on", zero=ERROR, control="ok"), ab.TROUBLE),
        (run("b", full="spin; lost", zero=ERROR, control="ok"), ab.SOMEWHERE_WORSE),
        (run("b", full="spin; goes-on", zero="spin; goes-on", control="stale"), 1),
    ],
)
def test_the_exit_code_of_ab(patched: Run, code: int) -> None:
    assert compared(STOCK, patched).code == code


def test_a_cell_without_a_verdict_is_told_with_its_kernel() -> None:
    broken = run("7.3.4+b", full="spin; goes-on", zero=ERROR)
    told = list(ab.report(compared(STOCK, broken)))
    assert "  virtiofs-dax-zero-load-apf, 7.3.4+b: made up" in told
    assert sum("virtiofs-dax-none-load-apf, 7.3.4+b: " in line for line in told) == 1


# --- measuring ------------------------------------------------------------------------------------

PYTEST = """
import json, pathlib, sys
words = sys.argv[1:]
folder = pathlib.Path(words[words.index("--artifacts") + 1])
for word in words:
    name = word.partition("[")[2].rstrip("]")
    if not name: continue
    place = folder / f"test_cell-{name}"
    place.mkdir(parents=True)
    if "ram" in name:
        (place / "error.txt").write_text("GuestLostError: it is gone\\nlogs")
    elif "none" not in name:
        (place / "verdict.json").write_text(json.dumps({
            "verdict": "spin", "recovery": {"kind": "goes-on"}, "summary": "it spins",
            "seconds": {"arm": 1.0, "tear-down": 0.5}, "host_release": "7.3.4-x",
            "kvm_build_id": "abc"}))
sys.exit(CODE)
"""


def stand_in(tmp_path: Path, code: int) -> Pytest:
    script = tmp_path / "pytest.py"
    script.write_text(PYTEST.replace("CODE", str(code)))
    return Pytest(argv=(sys.executable, str(script)))


def test_verdicts_and_trouble_are_read_and_what_was_not_come_to_is_missing(tmp_path: Path) -> None:
    pytest_program = stand_in(tmp_path, 1)
    cells = [ZERO, FULL, CONTROL]
    found = measure("k", "page", cells, tmp_path / "out", patience=60.0, pytest=pytest_program)
    assert found.results == {
        case_id(ZERO): CellResult(ZERO, "spin", "goes-on", "it spins", 1.5),
        case_id(FULL): CellResult(FULL, ERROR, "", "GuestLostError: it is gone", 0.0),
    }
    assert (found.release, found.kvm_build_id) == ("7.3.4-x", "abc")


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ("7.3.4", ("--host-kernel", "7.3.4")),
        ("7.3.4+a@mce", ("--host-kernel", "7.3.4+a", "--vmm-policy", "mce")),
    ],
)
def test_a_kernel_may_come_with_a_policy_of_the_vmm(kernel: str, options: tuple[str, ...]) -> None:
    assert options_of(kernel) == options


def test_what_an_earlier_run_has_left_is_no_answer_of_this_one(tmp_path: Path) -> None:
    measure("k", "page", [ZERO], tmp_path, patience=60.0, pytest=stand_in(tmp_path, 1))
    nothing = Pytest(argv=(sys.executable, "-c", "raise SystemExit(1)"))
    found = measure("k", "page", [ZERO], tmp_path, patience=60.0, pytest=nothing)
    assert found.results == {}


def test_a_pytest_that_was_called_wrongly_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(BrokenHarnessError, match="pytest ended with code 4"):
        measure("k", "page", [ZERO], tmp_path, patience=60.0, pytest=stand_in(tmp_path, 4))


# --- the page -------------------------------------------------------------------------------------


def test_accesses_that_came_to_the_same_are_on_one_line() -> None:
    stock = run("7.3.4", zero="spin; goes-on", zero_store="spin; goes-on", full="spin; goes-on")
    fixed = run("7.3.4+fix", zero="vm-exit; lost", zero_store="vm-exit; lost")
    assert page.lines([stock, fixed]) == [
        page.AlikeCells(
            "virtiofs-dax", "zero", "apf", ("load", "store"), ("spin; goes-on", "vm-exit; lost")
        ),
        page.AlikeCells("ram", "full", "apf", ("load",), ("spin; goes-on", "not measured")),
    ]


def test_the_words_of_the_page_say_what_a_fix_makes_better_and_worse() -> None:
    text = page.page([STOCK, FIXED], sets.load())
    assert "2 (`full` on ram 1; `zero` on virtiofs-dax 1)" in text
    better, worse, lost = re.findall(r"better in (\d+), worse in (\d+);.* (\d+ \(.*?\))", text)[0]
    assert (better, worse, lost) == ("2", "0", "1 (`full` on ram 1)")
    assert all(entry.reason in text for entry in sets.load().impossible)


def test_the_same_data_gives_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one.svg", "two.svg"):
        picture.draw([STOCK, FIXED], tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_each_backing_has_columns_of_its_own_with_room_for_its_name() -> None:
    runs = measured()
    columns = picture.columns_of(runs)
    assert len(set(columns.values())) == len(columns)
    cells = {result.scenario for run in runs for result in run.results.values()}
    kinds = {(c.backing, c.access, c.async_pf, c.vcpus, c.condition) for c in cells}
    assert len(columns) == len(kinds)
    begins = {backing: at for (backing, _), at in reversed(columns.items())}
    for (backing, begin), (_, following) in itertools.pairwise(reversed(begins.items())):
        assert begin + len(backing) * picture.LETTER < following, backing


def test_every_verdict_has_a_look_of_its_own_colour_or_letter() -> None:
    assert len(set(picture.LOOKS.values())) == len(picture.LOOKS)


# --- what is in the tree --------------------------------------------------------------------------


def measured() -> list[Run]:
    return ordered(result.load(DATA))


def test_the_page_is_made_of_its_data() -> None:
    runs = measured()
    assert DOCUMENT.read_text() == page.page(runs, sets.load())


def test_the_numbers_of_the_page_are_those_of_the_data() -> None:
    """Counted here, by other code than the page's."""
    measured()
    data = json.loads(DATA.read_text())["kernels"]
    text = DOCUMENT.read_text()
    cells = {name for run in data.values() for name in run["cells"]}
    assert len(cells) >= 150
    assert f": {len(cells)} cells, on {len(data)} kernels " in text
    rows = {
        row.split("|")[1].strip(" `"): [int(n) for n in row.split("|")[2:-1]]
        for row in text.splitlines()
        if row.count("|") == len(data) + 2 and row.split("|")[2].strip().isdecimal()
    }
    columns = [Counter(cell["verdict"] for cell in run["cells"].values()) for run in data.values()]
    for verdict in {name for column in columns for name in column}:
        assert rows[verdict] == [column[verdict] for column in columns], verdict
    lost = [
        sum(cell["recovery"] == "lost" for cell in run["cells"].values()) for run in data.values()
    ]
    assert rows.get("lost", [0] * len(data)) == lost


def test_stock_and_every_fix_were_measured() -> None:
    measured()
    wanted = {"7.3.4", *(f"7.3.4+{fix}" for fix in FIXES)}
    assert wanted == set(json.loads(DATA.read_text())["kernels"])


def test_answers_of_another_cpu_are_not_mixed_with_those_of_the_page() -> None:
    with pytest.raises(UsageError, match="name a file of its own with --data"):
        main(["--minutes", "0", "--", "--cpu", "intel"])
