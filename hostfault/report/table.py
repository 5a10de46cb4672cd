"""The table of verdicts at the end of a run, as lines of plain text with a colour each. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hostfault.case.model import STOCK, Scenario
from hostfault.case.record import LabFacts
from hostfault.case.words import guest_in_words

Tone = Literal["good", "known", "bad", "plain"]

MINIMUM_WIDTH = 40
INDENT = "    "


@dataclass(frozen=True)
class Row:
    """One test in the table."""

    scenario: Scenario
    word: str  # the verdict, or ERROR, SKIP
    summary: str
    tone: Tone
    remark: str = ""  # "known issue: ..."


@dataclass(frozen=True)
class Line:
    """A line of text and how it should look."""

    text: str
    tone: Tone = "plain"


def header(facts: LabFacts) -> str:
    """Which host, which kernels, which QEMU, and why."""
    kernel = facts.host_kernel
    maker = "Debian " if kernel is not None and kernel.packaged else ""
    built = f" as {kernel.name}" if kernel is not None and not kernel.packaged else ""
    policy = "" if facts.vmm_policy == STOCK else f" with policy {facts.vmm_policy}"
    source = f" as {facts.qemu.source}" if facts.qemu.build_id else ""
    qemu = f"QEMU {facts.qemu.version}{source}{policy}"
    parts = [facts.host_kind, f"{maker}{facts.host_release}{built}", qemu]
    if facts.back_end:
        parts.append(f"back-end {facts.back_end.partition(' (')[0]}")
    if facts.guest_kernel.release != facts.host_release:
        parts.append(f"guest {facts.guest_kernel.release}")
    reason = f"   ({facts.host_reason})" if facts.host_reason else ""
    return f"host: {', '.join(parts)}{reason}"


def render(rows: Sequence[Row], width: int) -> list[Line]:
    """The table in ``width`` columns.

    One line a test where it fits; otherwise the summary wraps below its case.
    """
    cells = [_cells(row) for row in rows]
    widths = [max((len(line[at]) for line in cells), default=0) for at in range(5)]
    lines: list[Line] = []
    for row, cell in zip(rows, cells, strict=True):
        case = "  ".join(text.ljust(room) for text, room in zip(cell, widths, strict=True))
        rest = "   ".join(filter(None, (row.summary, row.remark)))
        if len(case) + 2 + len(rest) <= width:
            lines.append(Line(f"{case}  {rest}".rstrip(), row.tone))
            continue
        lines.append(Line(case.rstrip(), row.tone))
        lines += [Line(text, row.tone) for text in _wrapped(row, width)]
    return lines


def _wrapped(row: Row, width: int) -> list[str]:
    room = max(width, MINIMUM_WIDTH)
    return [
        line
        for text in (row.summary, row.remark)
        for line in textwrap.wrap(text, room, initial_indent=INDENT, subsequent_indent=INDENT)
    ]


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    scenario = row.scenario
    return (
        scenario.backing,
        scenario.fault,
        scenario.access,
        guest_in_words(scenario, "async-pf", "no-async-pf"),
        row.word,
    )
