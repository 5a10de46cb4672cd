"""Which way to count is taken, and what perf_event_open is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault.agent import perf, tracing
from hostfault.agent.counters import NoCounts, begin
from hostfault.agent.perf import filters

GFN = 0xF8008
RIP = 0x4016B5


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A tracefs that may be read and not written; root is never refused, so it is said."""

    def refuse(_: tracing.Tracer) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tracing.Tracer, "start", refuse)
    for number, event in enumerate((*perf.NEEDED, *perf.OPTIONAL)):
        folder = tmp_path / "events" / "kvm" / event
        folder.mkdir(parents=True)
        (folder / "id").write_text(f"{1 << 30 | number}\n")  # an event that no kernel has
    return tmp_path


def test_without_the_number_of_an_event_the_reason_names_its_file(forbidden: Path) -> None:
    (forbidden / "events" / "kvm" / "kvm_page_fault" / "id").unlink()
    counters = begin(forbidden)
    assert isinstance(counters, NoCounts)
    assert "kvm_page_fault/id cannot be read" in counters.why


def test_an_event_that_the_kernel_refuses_is_not_counted(forbidden: Path) -> None:
    counters = begin(forbidden)
    assert isinstance(counters, NoCounts)
    assert "tracefs is root's; " in counters.why
    assert counters.counted() == []


def test_paranoia_is_named_with_its_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    level = tmp_path / "paranoid"
    level.write_text("3\n")
    monkeypatch.setattr(perf, "PARANOID", level)
    assert perf.why_not_allowed(PermissionError(13, "Permission denied")).startswith(
        f"{level} is 3: 1 or less"
    )


def test_nothing_is_counted_before_a_frame_is_named(forbidden: Path) -> None:
    told = perf.PerfCounts(forbidden).counts({1}, None, (RIP, RIP))
    nothing = {"faults": [], "async_started": [], "async_ready": [], "exits": [], "touches": None}
    assert told == nothing


def test_a_filter_picks_the_frame_and_the_access() -> None:
    event, text = filters(GFN, RIP, RIP)["there"]
    assert event == "kvm_page_fault"
    assert text == (
        f"fault_address >= 0xf8008000 && fault_address < 0xf8009000"
        f" && guest_rip >= {RIP:#x} && guest_rip <= {RIP:#x}"
    )


def test_every_exit_with_an_error_is_counted_once() -> None:
    """EFAULT and EHWPOISON by name, and no other count has them; EINTR and EAGAIN are none."""
    by_name = filters(GFN, RIP, RIP)
    assert by_name["efault"][1] == "errno == -14"
    assert by_name["ehwpoison"][1] == "errno == -133"
    for excluded in (4, 11, 14, 133):
        assert f"errno != -{excluded}" in by_name["other"][1].split(" && ")
