"""The report's plots, as SVG that stands in the page itself. Needs matplotlib (extra ``nightly``).

What a guest or its QEMU said may be in them: every word goes through matplotlib's escaping, and
none is read as a formula.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from hostfault.plumbing.errors import SetupError

# Okabe and Ito's colours, which people tell apart whatever their eyes.
BLUE, ORANGE, GREEN, VERMILION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
PURPLE, SKY, GREY = "#cc79a7", "#56b4e9", "#8a8a8a"
_STACK = (BLUE, ORANGE, GREEN, SKY, PURPLE, VERMILION, GREY)
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "")
_STATES = {"running": GREEN, "paused": ORANGE, "": GREY}
_MOST_EVENTS = 12


@dataclass(frozen=True)
class TimeSeries:
    """What is drawn of one case."""

    at: Sequence[float]  # seconds since the touch
    faults: Sequence[float]  # on the frame, counted from the first sample on
    cpu: Sequence[float]  # seconds of CPU time of the vCPUs, as counted
    states: Sequence[str]
    events: Sequence[tuple[float, str]]


def series_of(observation: Mapping[str, Any]) -> TimeSeries | None:
    """What an observation, as JSON data, has to draw; None if that is nothing."""
    samples = [each for each in observation.get("samples") or [] if isinstance(each, Mapping)]
    samples = [each for each in samples if isinstance(each.get("at"), (int, float))]
    if len(samples) < 2:
        return None
    frame = observation.get("expected_gfn")
    if frame is None:
        frame = _busiest(samples[-1])
    counted = [_on_frame(each, frame) for each in samples]
    events = [
        (float(each["at"]), ("host: " if each.get("host") else "") + str(each.get("name")))
        for each in observation.get("events") or []
        if isinstance(each, Mapping) and isinstance(each.get("at"), (int, float))
    ]
    return TimeSeries(
        at=[float(each["at"]) for each in samples],
        faults=[each - counted[0] for each in counted],
        cpu=[float(each.get("vcpu_seconds") or 0.0) for each in samples],
        states=[str(each.get("run_state") or "") for each in samples],
        events=events[:_MOST_EVENTS],
    )


def _on_frame(sample: Mapping[str, Any], frame: object) -> float:
    faults = sample.get("faults") or []
    return float(sum(each.get("count", 0) for each in faults if each.get("gfn") == frame))


def _busiest(sample: Mapping[str, Any]) -> object:
    faults = sample.get("faults") or []
    return max(faults, key=lambda each: each.get("count", 0))["gfn"] if faults else None


def shares(at: Sequence[float], cpu: Sequence[float]) -> list[float]:
    """The share of a core between each sample and the one before."""
    return [
        max(0.0, (cpu[n] - cpu[n - 1]) / (at[n] - at[n - 1])) if at[n] > at[n - 1] else 0.0
        for n in range(1, len(at))
    ]


def of_case(series: TimeSeries, name: str) -> str:
    """Faults, CPU share and run state of a case over time; ``name`` makes its ids its own."""
    plt = _pyplot()
    figure, (faults, cpu, state) = plt.subplots(
        3, 1, figsize=(7.2, 3.9), sharex=True, height_ratios=(5, 4, 1.2)
    )
    # A layout that is found out costs as much again as the drawing.
    figure.subplots_adjust(left=0.1, right=0.99, top=0.98, bottom=0.11, hspace=0.16)
    faults.step(series.at, series.faults, where="post", color=VERMILION, marker="o", markersize=2.5)
    faults.set_ylabel("faults on\nthe frame")
    faults.set_ylim(bottom=0)
    cpu.stairs(shares(series.at, series.cpu), series.at, color=BLUE, fill=True, alpha=0.45)
    cpu.set_ylabel("vCPU\nshare of a core")
    cpu.set_ylim(0, max(1.05, *shares(series.at, series.cpu)))
    _draw_states(state, series)
    for axes in (faults, cpu, state):
        axes.axvline(0.0, color="black", linewidth=0.8, linestyle=":")
        for at, _ in series.events:
            axes.axvline(at, color=PURPLE, linewidth=1.0)
    for number, (at, words) in enumerate(series.events):
        faults.annotate(
            _plain(words),
            (at, 1.0 - 0.11 * (number % 6)),
            xycoords=("data", "axes fraction"),
            xytext=(3, -9),
            textcoords="offset points",
            fontsize=7,
            color="#7a3560",
            parse_math=False,
        )
    state.set_xlabel("seconds since the touch")
    return _svg(figure, name)


def _draw_states(axes: Any, series: TimeSeries) -> None:
    """One bar for each stretch of a state, with its word."""
    begin = 0
    for number in range(1, len(series.at) + 1):
        over = number == len(series.at)
        if not over and series.states[number] == series.states[begin]:
            continue
        left = series.at[begin]
        right = series.at[number] if not over else series.at[-1]
        word = series.states[begin] or "no answer"
        colour = _STATES.get(series.states[begin], VERMILION)
        axes.barh(0, right - left, left=left, height=1.0, color=colour, alpha=0.35)
        axes.text(
            left, 0, f" {_plain(word)}", va="center", fontsize=7, clip_on=True, parse_math=False
        )
        begin = number
    axes.set_yticks([])
    axes.set_ylabel("state", rotation=0, ha="right", va="center")


def of_phases(nights: Sequence[tuple[str, Mapping[str, float]]], name: str) -> str:
    """Mean seconds of a test by phase, one bar a night, oldest first."""
    plt = _pyplot()
    phases = list(dict.fromkeys(phase for _, each in nights for phase in each))
    total = {phase: sum(each.get(phase, 0.0) for _, each in nights) for phase in phases}
    shown = sorted(phases, key=lambda phase: -total[phase])[: len(_STACK) - 1]
    figure, axes = plt.subplots(figsize=(7.2, 2.9))
    figure.subplots_adjust(left=0.08, right=0.99, top=0.97, bottom=0.26)
    places = range(len(nights))
    base = [0.0] * len(nights)
    for number, phase in enumerate([*shown, "other"]):
        heights = [
            each.get(phase, 0.0)
            if phase != "other"
            else sum(value for other, value in each.items() if other not in shown)
            for _, each in nights
        ]
        if not any(heights):
            continue
        axes.bar(
            places,
            heights,
            bottom=base,
            color=_STACK[number],
            hatch=_HATCHES[number],
            edgecolor="white",
            linewidth=0.3,
            label=_plain(phase),
        )
        base = [low + high for low, high in zip(base, heights, strict=True)]
    step = max(1, len(nights) // 8)
    ticks = list(places)[::-1][::step]
    axes.set_xticks(ticks, [nights[at][0][5:] for at in ticks], fontsize=7)
    axes.set_ylabel("seconds, mean of a test")
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    return _svg(figure, name)


def _svg(figure: Any, name: str) -> str:
    """The figure as an element that can stand in a page with others of its kind."""
    sink = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    _pyplot().close(figure)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # The ids of a page are one space.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    head, rest = text.split(">", 1)
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest


def _plain(words: str) -> str:
    """Printable characters only: a control character would be no XML."""
    return "".join(c if c.isprintable() else " " for c in words)[:60]


def _pyplot() -> Any:
    try:
        matplotlib = import_module("matplotlib")
        matplotlib.use("svg")
        plt = import_module("matplotlib.pyplot")
    except ImportError as error:
        raise SetupError("matplotlib is missing: start it by ci/nightly") from error
    plt.rcParams.update(
        {
            "svg.fonttype": "none",  # text stays text, for searching and for size
            "svg.hashsalt": "hostfault",
            "font.family": "sans-serif",
            "font.size": 8,
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return plt
