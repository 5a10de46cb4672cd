"""What the selftest says, as typed data.

Its output is TAP version 13, as tools/testing/selftests/kselftest.h prints it: a plan, and a
line ``ok N NAME`` or ``not ok N NAME`` for each test. Before that line there are diagnostics
of the test's own, ``# NAME: KEY=VALUE ...``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hostfault.plumbing.errors import ProtocolError

VERDICTS = ("ok", "exit", "spin", "stall", "stale", "other")
CONTROLS = ("present", "late")  # backings whose page is there, at once or after a while
_PLAN = re.compile(r"^1\.\.(\d+)\b", re.MULTILINE)
_RESULT = re.compile(r"^(?P<ok>ok|not ok) (?P<number>\d+) (?:- )?(?P<words>.*)$")
_NOTE = re.compile(r"^# (?P<name>[\w.-]+): (?P<fields>\w+=\S+(?: \w+=\S+)*)$")


@dataclass(frozen=True)
class SelftestResult:
    """One test of the selftest."""

    name: str  # "zero.apf-user.load": backing, mode, access
    passed: bool
    verdict: str  # one of VERDICTS; "" if it was skipped
    fields: Mapping[str, str]  # all that it said of itself, e.g. {"failed": "192"}
    skipped: str = ""  # why

    @property
    def is_control(self) -> bool:
        """Whether its page is there, so that anything but "ok" is the witness's own trouble."""
        return self.name.partition(".")[0] in CONTROLS


def parse(text: str) -> dict[str, SelftestResult]:
    """All results by name.

    Raises :class:`ProtocolError` if the plan is missing or was not fulfilled, or if a result
    is without a verdict or at odds with it: then the program broke off, or is not ours.
    """
    plan = _PLAN.search(text)
    if plan is None:
        raise ProtocolError(f"the selftest printed no plan:\n{_end(text)}")
    if plan[1] == "0":
        raise ProtocolError(f"the selftest has no test to run here:\n{_end(text)}")
    notes: dict[str, dict[str, str]] = {}
    found: dict[str, SelftestResult] = {}
    for line in text.replace("\r", "").splitlines():
        if note := _NOTE.match(line):
            pairs = (pair.split("=", 1) for pair in note["fields"].split(" "))
            notes.setdefault(note["name"], {}).update((key, value) for key, value in pairs)
        elif match := _RESULT.match(line):
            result = _result(match["ok"] == "ok", match["words"], notes)
            found[result.name] = result
    if len(found) != int(plan[1]):
        raise ProtocolError(
            f"the selftest planned {plan[1]} tests and told of {len(found)}:\n{_end(text)}"
        )
    return found


def _result(passed: bool, words: str, notes: Mapping[str, Mapping[str, str]]) -> SelftestResult:
    if " # SKIP" in words or words.startswith("# SKIP"):
        name, _, reason = words.replace("# SKIP", "").strip().partition(": ")
        return SelftestResult(name.strip(), passed, "", {}, reason.strip() or "no reason given")
    name = words.strip()
    fields = notes.get(name, {})
    verdict = fields.get("verdict", "")
    if verdict not in VERDICTS:
        raise ProtocolError(f"the selftest gave {name} the verdict {verdict!r}")
    result = SelftestResult(name, passed, verdict, fields)
    if passed != (verdict == ("ok" if result.is_control else "exit")):
        raise ProtocolError(f"the selftest's result of {name} does not follow from {verdict!r}")
    return result


def _end(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-15:])
