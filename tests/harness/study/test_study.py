"""The error-table study: its plan, frames, blame, numbers and document. No machine is booted."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hostfault.guest.crowd import ArmedCrowd, Task
from hostfault.plumbing.errors import UsageError
from hostfault.study import __main__ as study
from hostfault.study import blame, figures, frames, plan, run, stats, write
from hostfault.study.blame import Blame
from hostfault.study.plan import Cell
from hostfault.study.run import ENOUGH, StudyRun

WINDOW = range(0xF8000, 0xFA000)  # 32 MiB of the DAX window
RIP, MARK = 0x4016B5, 0x7A5C0000
TOUCHER = Task(number=3, pid=70, page=1, address=0x7FB523801000)
BUSY = Task(number=0, pid=67, page=None, address=0)
ARMED = ArmedCrowd(RIP, MARK, (BUSY, BUSY, BUSY, TOUCHER))


def result(cell: Cell, repeat: int = 0, outcome: str = "exit", faults: int = 32) -> StudyRun:
    exited = outcome == "exit"
    return StudyRun(
        cell=cell.key,
        repeat=repeat,
        outcome=outcome,
        faults=faults,
        other_faults=0,
        by_frame=(faults,),
        vcpus_by_frame=(1,),
        ready=faults,
        seconds=0.5,
        recorded=faults,
        hit=int(exited),
        overwritten=0,
        blame="culprit" if exited else "",
        blamed=3 if exited else None,
        named=None,
        named_is_blamed=None,
        gfns=(0xF8001,),
        release="7.3.4",
        took=4.0,
    )


# --- plan ---------------------------------------------------------------------------------


def test_no_two_cells_share_a_name() -> None:
    for cells in (plan.full(), plan.quick()):
        assert len({cell.key for cell in cells}) == len(cells)


def test_what_conclusions_rest_on_is_repeated_twenty_times() -> None:
    threads_case = [cell for cell in plan.full() if cell.behind and cell.bad == 32]
    assert {cell.slots for cell in threads_case} == set(plan.SLOTS)
    assert all(cell.repeats >= 20 for cell in threads_case if cell.frames == "random")
    smallest = Cell("error-table", "array", 1)
    answers = [
        Cell("fail-at-once"),
        Cell("stock", delay=plan.SLOW),
        Cell("exit-request"),
        smallest,
        replace(smallest, delay=plan.SLOW),
        replace(smallest, lookup="keep", delay=plan.SLOW),
    ]
    repeats = {cell.key: cell.repeats for cell in plan.full()}
    for cell in answers:
        fair = replace(cell, policy="fair").key
        assert repeats[fair] >= 20
        assert repeats.get(cell.key, 20) >= 20


def test_a_study_cut_short_has_its_share_of_every_cell() -> None:
    often, seldom = Cell("stock", repeats=20), Cell("exit-request", repeats=5)
    first = list(study.missing([often, seldom], {}))[:10]
    assert [cell.fix for cell, _ in first].count("stock") == 8
    assert len(set(first)) == 10


def test_a_study_that_was_killed_goes_on_where_it_was() -> None:
    cell = Cell("stock", repeats=3)
    assert [repeat for _, repeat in study.missing([cell], {cell.key: {0, 2}})] == [1]


def test_cells_can_be_chosen_by_words_of_their_names() -> None:
    assert all("hash/8 " in cell.key for cell in study._chosen(plan.full(), ["hash/8 "]))
    with pytest.raises(UsageError, match="there are\n  error-table/array/1 "):
        study._chosen(plan.full(), ["nonsense"])


@pytest.mark.parametrize("text", ["stock", "stock=", "table=/boot/vmlinuz"])
def test_a_kernel_for_nothing_that_is_studied_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not stock"):
        study._kernel(text)


# --- results ------------------------------------------------------------------------------


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    results = [result(Cell("stock"), repeat) for repeat in range(3)]
    study._append(tmp_path / "full.jsonl", results)
    assert study.load(tmp_path / "full.jsonl") == results


def test_a_line_that_a_killed_study_left_half_written_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "full.jsonl"
    first, second = result(Cell("stock"), 0), result(Cell("stock"), 1)
    study._append(path, [first])
    with path.open("a") as stream:
        stream.write('{"cell": "sto')
    study._append(path, [second])
    assert study.load(path) == [first, second]


def test_an_exit_without_a_hit_is_not_the_tables(tmp_path: Path) -> None:
    table, stock, request = Cell("error-table", "hash", 8), Cell("stock"), Cell("exit-request")
    exits = [replace(result(cell), hit=0) for cell in (table, stock, request)]
    outcomes = [run.told_apart(each).outcome for each in (*exits, result(table))]
    assert outcomes == ["queue-full", "queue-full", "exit", "exit"]
    assert run.told_apart(replace(exits[0], outcome="spin")).outcome == "spin"
    study._append(tmp_path / "full.jsonl", exits[:1])
    assert study.load(tmp_path / "full.jsonl") == [replace(exits[0], outcome="queue-full")]


def test_results_of_before_a_count_was_known_are_read(tmp_path: Path) -> None:
    data = dataclasses.asdict(result(Cell("stock"), outcome="spin"))
    del data["dropped"]
    (tmp_path / "full.jsonl").write_text(json.dumps(data) + "\n")
    assert study.load(tmp_path / "full.jsonl") == [result(Cell("stock"), outcome="spin")]


# --- frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_the_slot_is_what_the_kernels_hash_32_says(bits: int) -> None:
    for gfn in WINDOW[::97]:
        kernels = ((gfn * 0x61C88647) & 0xFFFFFFFF) >> (32 - bits)
        assert frames.slot(gfn, 1 << bits) == kernels


def test_a_table_of_one_has_one_slot() -> None:
    assert {frames.slot(gfn, 1) for gfn in WINDOW} == {0}


def test_colliding_frames_share_a_slot_in_every_table() -> None:
    gfns = frames.choose("collide", WINDOW, 32, random.Random(1))
    assert len(set(gfns)) == 32
    for slots in plan.SLOTS:
        assert len({frames.slot(gfn, slots) for gfn in gfns}) == 1


def test_random_frames_differ_and_do_not_share_a_slot() -> None:
    gfns = frames.choose("random", WINDOW, 32, random.Random(1))
    assert len(set(gfns)) == 32
    assert len({frames.slot(gfn, 64) for gfn in gfns}) > 16


def test_a_frame_is_alone_if_no_other_has_its_slot() -> None:
    gfns = frames.choose("collide", WINDOW, 4, random.Random(1))
    stranger = next(gfn for gfn in WINDOW if frames.slot(gfn, 64) != frames.slot(gfns[0], 64))
    assert (frames.alone(gfns, 64), frames.alone([*gfns, stranger], 64)) == (0, 1)
    assert frames.alone(gfns[:1], 1) == 1


def test_the_share_of_draws_that_leave_no_frame_alone_is_that_of_all_draws() -> None:
    for number, slots in ((1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (2, 6)):
        draws = list(itertools.product(range(slots), repeat=number))
        none = [draw for draw in draws if 1 not in Counter(draw).values()]
        assert frames.none_alone(number, slots) == pytest.approx(len(none) / len(draws))


def test_chance_leaves_a_frame_alone_in_16_slots_with_32_tasks_but_not_with_128() -> None:
    shares = [round(100 * frames.none_alone(number, 16), 1) for number in (32, 64, 128)]
    assert shares == [0.4, 28.7, 96.5]


# --- blame --------------------------------------------------------------------------------


def dump(*, cpl: int = 3, rip: int = RIP, r15: int = MARK + 3, rdi: int = TOUCHER.address) -> str:
    """A register dump as QEMU prints it."""
    return (
        "error: kvm run failed Bad address\n"
        f"RAX=0000000000000000 RBX=0000000000000001 RCX=0000000000000002 RDX={3:016x}\n"
        f"RSI=0000000000000000 RDI={rdi:016x} RBP=0000000000000000 RSP=00007ffc00000000\n"
        "R8 =0000000000000000 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000246\n"
        f"R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15={r15:016x}\n"
        f"RIP={rip:016x} RFL=00000202 [-------] CPL={cpl} II=0 A20=1 SMM=0 HLT=0\n"
        "EFER=0000000000000d01\nCode=5e 5f c3 RAX=ff\n"
    )


def test_a_toucher_on_its_instruction_is_the_culprit() -> None:
    assert blame.judge(dump(), ARMED) == blame.Finding(Blame.CULPRIT, 3, None)


@pytest.mark.parametrize(
    ("state", "whom"),
    [
        ({"rip": RIP + 3}, Blame.ELSEWHERE),
        ({"rdi": 0x7FB523802000}, Blame.ELSEWHERE),
        ({"r15": MARK}, Blame.BUSY),
        ({"cpl": 0}, Blame.KERNEL),
        ({"r15": MARK + 4}, Blame.UNKNOWN),
        ({"r15": 0}, Blame.UNKNOWN),
    ],
)
def test_who_is_not_the_culprit_is_not_blamed(state: dict[str, int], whom: Blame) -> None:
    assert blame.judge(dump(**state), ARMED).blame is whom


def test_without_a_register_dump_nobody_is_blamed() -> None:
    assert blame.judge("qemu: terminating\n", ARMED) == blame.Finding(Blame.UNKNOWN, None, None)


def test_the_frame_that_a_memory_fault_names_is_read() -> None:
    words = "Convert non guest_memfd backed memory region (0xf8003000 ,+ 0x1000) to shared\n"
    assert blame.judge(words + dump(), ARMED).named_gfn == 0xF8003


# --- numbers ------------------------------------------------------------------------------


def test_wilsons_interval_is_as_in_the_books() -> None:
    share = stats.wilson(20, 20)
    assert (round(share.low, 3), share.high) == (0.839, 1.0)
    share = stats.wilson(5, 10)
    assert (round(share.low, 3), round(share.high, 3)) == (0.237, 0.763)
    assert stats.wilson(0, 0) == stats.Proportion(0, 0, 0.0, 1.0)


def test_the_medians_interval_cuts_off_five_of_twenty_at_either_end() -> None:
    # P(binomial(20, 1/2) <= 5) = 2.07 %, and 5.77 % for 6: ranks 6 and 15.
    assert stats.middle(list(range(1, 21))) == stats.Middle(10.5, 6, 15)


def test_the_median_of_a_few_has_all_of_them_as_its_interval() -> None:
    assert stats.middle([9, 1, 4]) == stats.Middle(4, 1, 9)


def test_a_summary_counts_exits_and_culprits_apart() -> None:
    cell = Cell("exit-request")
    other = replace(result(cell, 1, faults=2), blame="kernel", named=True)
    row = stats.summary(cell, [result(cell, 0), other, result(cell, 2, "spin", 2003)])
    assert (row.exits.yes, row.exits.of) == (2, 3)
    assert (row.culprits.yes, row.culprits.of) == (1, 2)
    assert (row.named.yes, row.most, row.faults.value) == (1, 2003, 32)
    assert row.blames == {"culprit": 1, "kernel": 1}


def test_what_was_dropped_is_lost_like_what_was_driven_out() -> None:
    cell = Cell("error-table", "keep", 1)
    row = stats.summary(cell, [replace(result(cell), overwritten=2, dropped=30)])
    assert row.lost.value == 32


def test_a_culprit_other_than_the_one_that_the_exit_names_is_told_apart() -> None:
    named = replace(result(Cell("exit-request")), named=True, named_is_blamed=False)
    assert stats.whom(named) == "other"
    assert stats.whom(replace(named, named_is_blamed=True)) == "culprit"
    assert stats.whom(replace(named, blame="busy")) == "busy"


def test_a_full_queue_is_not_counted_as_an_exit() -> None:
    cell = Cell("error-table", "hash", 8, bad=128, behind=1)
    full = run.told_apart(replace(result(cell, 1), hit=0))
    rows = write.summaries([cell], [result(cell, 0), full])
    assert (rows[cell.key].exits.yes, rows[cell.key].exits.of) == (1, 2)
    assert rows[cell.key].blames == {"culprit": 1}
    assert "| 1/2 (9 to 91 %), queue full 1 |" in write.tables([cell], rows)["crowds"]


# --- document -----------------------------------------------------------------------------


def test_what_was_cut_off_is_not_told_as_a_count() -> None:
    cell = Cell("error-table", "array", 1, behind=1)
    rows = write.summaries([cell], [result(cell, 0, "spin", ENOUGH + 40)])
    text = write.tables([cell], rows)["slots"]
    assert "| array of 1 | 0/1 (0 to 79 %) | ≥ 2,000 (≥ 2,000 to ≥ 2,000) |" in text


def test_hashes_are_told_apart_by_whether_a_frame_is_alone_in_its_slot() -> None:
    cell = Cell("error-table", "hash", 64, behind=1)
    crowded = tuple(frames.choose("collide", WINDOW, 2, random.Random(1)))
    loner = result(cell, 0)
    others = replace(result(cell, 1, faults=900), gfns=crowded)
    text = write.alone_table([cell], [loner, others])
    assert "| some | 1/1 (21 to 100 %) | 32 (32 to 32) |" in text
    assert "| none | 0/1 (0 to 79 %) | 900 (900 to 900) |" in text


def test_every_measured_cell_is_in_a_table() -> None:
    cells = plan.full()
    shown = [cell for cell in cells for wanted, _ in write.TABLES.values() if wanted(cell)]
    assert set(cells) == set(shown)


def test_the_document_in_the_project_has_every_table() -> None:
    text = study.DOCUMENT.read_text()
    assert all(f"<!-- table {name} -->\n|" in text for name in (*write.TABLES, "alone", "draws"))


class Data:
    """The data in the project, with figures as the document writes them."""

    def __init__(self) -> None:
        runs = json.loads((study.DOCUMENT.with_suffix("") / "runs.json").read_text())
        self.runs = [study._result(each) for each in runs]

    def of(self, *words: str) -> list[StudyRun]:
        """The runs of all cells in whose names these words are, in turn."""
        return [each for each in self.runs if re.search(".* ".join(words), each.cell + " ")]

    def exits(self, *words: str) -> str:
        """How many of the runs ended in an exit, as "17 of 20"."""
        return self.outcomes("exit", *words)

    def faults(self, *words: str) -> str:
        """Between how many faults it took them, as "32 to 38"; one number if all are the same."""
        counts = {each.faults for each in self.of(*words) if each.outcome == "exit"}
        low, high = f"{min(counts):,}", f"{max(counts):,}"
        return low if low == high else f"{low} to {high}"

    def most(self, *words: str) -> str:
        return f"{max(each.faults for each in self.of(*words)):,}"

    def outcomes(self, outcome: str, *words: str) -> str:
        mine = self.of(*words)
        return f"{sum(each.outcome == outcome for each in mine)} of {len(mine)}"

    def culprits(self, *words: str) -> str:
        exits = [each for each in self.of(*words) if each.outcome == "exit"]
        return f"{sum(stats.whom(each) == 'culprit' for each in exits)} of {len(exits)}"

    def alone(self, any_alone: bool) -> list[StudyRun]:
        hashes = self.of("^error-table/hash/", "E32", "behind1")
        slots = {each.cell: int(each.cell.split("/")[2].split()[0]) for each in hashes}
        alike = ((frames.alone(each.gfns, slots[each.cell]) > 0) is any_alone for each in hashes)
        return list(itertools.compress(hashes, alike))


# The figures of a section that are measured, by what tells them from its other numbers.
FRACTION = r"\b(\d[\d,]* of \d[\d,]*)\b"
FAULTS = r"\b(\d[\d,]*(?: to \d[\d,]*)?) faults\b"
PER_CENT = r"\b(\d[\d.]* %)"
UP_TO = r"\bup to (\d[\d,]*)\b"

LATE = "E32 random rr 1cpu behind1 $"
SLOW = "E32 random (rr|fair) 1cpu 5000us $"
AT_ONCE = "E32 random (rr|fair) 1cpu $"
ONE, EIGHT, SIXTEEN, ROOMY = (f"^error-table/array/{slots} " for slots in (1, 8, 16, 64))
KEPT, REQUEST = "^error-table/keep/", "^exit-request "


def figures_of_sizes(data: Data) -> dict[str, list[str]]:
    ended = [data.exits(words, LATE) for words in ("^error-table/array/[1248] ", SIXTEEN, KEPT)]
    enough, two_rounds = f"{ENOUGH:,}", f"{write.TWO_ROUNDS}"
    return {
        FRACTION: ended,
        FAULTS: [data.faults(ROOMY, LATE), enough, data.faults(KEPT, LATE), two_rounds],
    }


def figures_of_natural_orders(data: Data) -> dict[str, list[str]]:
    in_turns, fair = (f"E32 random {policy} 1cpu 5000us $" for policy in ("rr", "fair"))
    kept = data.exits("^error-table/keep/1 ", SLOW)
    return {FRACTION: [data.exits(ONE, in_turns), data.exits(ONE, fair), kept]}


def figures_of_moved_tasks(data: Data) -> dict[str, list[str]]:
    vcpus = [each.vcpus_by_frame for each in data.of("^error-table/", "move $")]
    failed, on_several = (
        max(sum(number > least for number in each) for each in vcpus) for least in (0, 1)
    )
    return {UP_TO: [str(failed), str(on_several)]}


def figures_of_the_answers(data: Data) -> dict[str, list[str]]:
    alone = data.alone(True)
    soon = [each for each in alone if each.faults <= write.TWO_ROUNDS]
    fractions = [
        data.culprits("^fail-at-once", AT_ONCE),
        data.exits(ONE, AT_ONCE),
        data.outcomes("spin", "^stock ", SLOW),
        data.exits(EIGHT, LATE),
        data.exits(SIXTEEN, LATE),
        f"{len(soon)} of {len(alone)}",
        data.culprits(REQUEST, SLOW),
        data.culprits(REQUEST, AT_ONCE),
        data.culprits("^error-table/"),
    ]
    draws = [(32, 16), (64, 16), (128, 16), (32, 8)]
    chances = [f"{100 * frames.none_alone(number, slots):.1f} %" for number, slots in draws]
    return {
        FRACTION: fractions,
        FAULTS: [data.most(KEPT), f"{ENOUGH:,}"],
        PER_CENT: chances,
    }


@pytest.mark.parametrize(
    ("heading", "figures_of"),
    [
        ("The size of the table", figures_of_sizes),
        ("Without an arranged order", figures_of_natural_orders),
        ("Several vCPUs, and tasks that move", figures_of_moved_tasks),
        ("Answers", figures_of_the_answers),
    ],
)
def test_the_figures_in_a_section_are_those_of_the_data(
    heading: str, figures_of: Callable[[Data], dict[str, list[str]]]
) -> None:
    section = study.DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if not line.startswith("|")]
    text = " ".join(" ".join(lines).split())
    for pattern, measured in figures_of(Data()).items():
        assert re.findall(pattern, text) == measured


def test_no_run_gave_up_entries_that_are_kept() -> None:
    kept = Data().of(KEPT)
    assert kept
    assert not any(each.overwritten for each in kept)


def test_the_data_in_the_project_is_of_this_plan() -> None:
    folder = study.DOCUMENT.with_suffix("")
    keys = {cell.key for cell in plan.full()}
    assert {each["cell"] for each in json.loads((folder / "runs.json").read_text())} <= keys


def test_figures_are_drawn_and_the_same_data_gives_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install '.[study]'")
    cells = plan.full()
    results = [result(cell, faults=1 + number) for number, cell in enumerate(cells)]
    drawn = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths = figures.draw(cells, results, tmp_path / name)
        drawn.append([path.read_bytes() for path in paths])
    assert drawn[0] == drawn[1]
    assert all(text.startswith(b"<?xml") and b"</svg>" in text for text in drawn[0])
