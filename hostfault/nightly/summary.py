"""``summary.md``: what changed, on one screen. Markdown as GitHub, a mail or a chat shows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from hostfault.nightly import news, runs
from hostfault.nightly.digest import Digest
from hostfault.nightly.news import Kind
from hostfault.nightly.results import Key, Result, Status, short

MOST = 12  # lines of one list
_HEADLINES = {
    news.NOTHING_NEW: "nothing new",
    news.WORSE: "something is worse",
    news.TROUBLE: "trouble of the harness, nothing worse",
}


def text(digest: Digest) -> str:
    """The whole file."""
    night = digest.night
    lines = [f"## hostfault, {night.name}: {_HEADLINES[digest.code]}", "", _totals(digest), ""]
    worse, better = digest.of(Kind.WORSE), digest.of(Kind.BETTER, Kind.CHANGED)
    if worse:
        lines += _table("Worse", digest, worse)
    if better:
        lines += _table("Better, or as good in another way", digest, better)
    lines += _changes(digest)
    lines += _trouble(digest)
    lines += _flakes(digest)
    lost = digest.of(Kind.LOST)
    if lost:
        names = _few([_cell(item.result.key) for item in lost])
        lines += [f"**Skipped, but ran before**: {names}", ""]
    if night.left:
        names = _few([_cell(key) for key in night.left])
        lines += [
            f"**No time for {len(night.left)} of {len(night.left) + len(digest.cells)}**, "
            f"they come first in the next night: {names}",
            "",
        ]
    lines += [f"- {escape(note)}" for note in night.notes]
    return "\n".join(lines).rstrip() + "\n"


def _totals(digest: Digest) -> str:
    worse = sum(item.result.outcome is not Status.PASSED for item in digest.of(Kind.WORSE))
    counts = {
        "passed": digest.count(Status.PASSED),
        "bad as known": digest.count(Status.KNOWN, Status.FAILED) - worse,
        "bad and new": worse,
        "skipped": digest.count(Status.SKIPPED),
        "without a result": sum(each.outcome.is_trouble for each in digest.cells.values()),
    }
    said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    kernels = ", ".join(escape(each) for each in digest.kernels)
    minutes = digest.night.spent / 60
    return (
        f"{said or 'no results'} on {kernels}; {minutes:.1f} of {digest.night.minutes:g} minutes; "
        f"compared to {escape(digest.baseline)}"
    )


def _table(title: str, digest: Digest, items: Sequence[news.Item]) -> list[str]:
    lines = [
        f"### {title}",
        "",
        "| kernel | case | was | is | since | proof |",
        "|---|---|---|---|---|---|",
    ]
    for item in items[:MOST]:
        result = item.result
        cells = (
            result.kernel,
            short(result.case),
            item.before,
            f"**{escape(result.word)}**",
            digest.since[result.key],
            result.summary,
        )
        lines.append(
            "| " + " | ".join(c if c.startswith("**") else escape(c) for c in cells) + " |"
        )
    if len(items) > MOST:
        lines.append(f"| … | {len(items) - MOST} more | | | | |")
    if items:
        lines += ["", f"Replay the first: `{replay(digest, items[0].result)}`"]
    return [*lines, ""]


def _changes(digest: Digest) -> list[str]:
    """What changed since the last night and is not told above."""
    told = {item.result.key for item in digest.items}
    rest = [change for change in digest.changes if change.key not in told]
    if not rest:
        return []
    lines = ["### Changed since the last night", ""]
    lines += [
        f"- {_cell(each.key)}: {escape(each.before)} → {escape(each.now.word)} "
        f"(before: {each.night})"
        for each in rest[:MOST]
    ]
    if len(rest) > MOST:
        lines.append(f"- … {len(rest) - MOST} more")
    return [*lines, ""]


def _trouble(digest: Digest) -> list[str]:
    if not digest.trouble:
        return []
    lines = ["### The harness had trouble", ""]
    for reason, found in digest.trouble.items():
        names = _few([_cell(key) for key in dict.fromkeys(each.key for each in found)], 3)
        said = escape(found[0].summary.splitlines()[0][:200]) if found[0].summary else ""
        lines.append(f"- {len(found)} times {escape(reason)}: {said} ({names})")
    return [*lines, ""]


def _flakes(digest: Digest) -> list[str]:
    if not digest.flakes:
        return []
    lines = ["### Flakes", ""]
    for key, found in digest.flakes.items():
        flaked, ran = digest.flake_rate(key)
        said = " → ".join(escape(each.word) for each in found)
        lines.append(f"- {_cell(key)}: {said} (in {flaked} of {ran} nights)")
    return [*lines, ""]


def replay(digest: Digest, result: Result) -> str:
    """The one command that runs a test again."""
    kernel = digest.night.kernels.get(result.kernel, result.kernel)
    words = [".venv/bin/pytest", result.case, *runs.where(kernel), *digest.night.options]
    return shlex.join(words)


def _cell(key: Key) -> str:
    return f"{escape(key.kernel)} {escape(short(key.case))}"


def _few(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    more = [f"… {len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more)


def escape(said: str) -> str:
    """Words that may be a guest's, so that they are no Markdown, no HTML and one line."""
    one_line = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return re.sub(r"([\\`*_{}\[\]<>#|~@!&])", r"\\\1", one_line)
