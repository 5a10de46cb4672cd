"""Counting tracepoints: what is written to tracefs and read back, on a pretended one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hostfault.agent.procstat import parse_stat
from hostfault.agent.tracing import Tracer, histogram, instance_name

HIST = """# event histogram
#
# trigger info: hist:keys=common_pid,guest_rip,fault_address:vals=hitcount:size=16384 [active]
#

{ common_pid:        412, guest_rip: 4200117, fault_address: 4160782336 } hitcount:        300
{ common_pid:        412, guest_rip: 18446744071590684525, fault_address: 4096 } hitcount:   2
{ common_pid:        999, guest_rip: 1, fault_address: 4160782336 } hitcount:         77

Totals:
    Hits: 379
    Entries: 3
    Dropped: 0
"""


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    """A tracefs whose instances come with the events that a kernel has."""
    folder = tmp_path / "instances" / "test" / "events" / "kvm" / "kvm_page_fault"
    folder.mkdir(parents=True)
    (folder / "format").write_text("\tfield:unsigned long guest_rip;\n\tfield:u64 fault_address;\n")
    (folder / "trigger").write_text("# Available triggers:\n")
    (folder / "hist").write_text(HIST)
    return tmp_path


def event(tracefs: Path) -> Path:
    return tracefs / "instances" / "test" / "events" / "kvm" / "kvm_page_fault"


def test_a_histogram_is_read_with_large_numbers_and_padding() -> None:
    entries = histogram(HIST)
    assert entries[0] == (
        {"common_pid": 412, "guest_rip": 4200117, "fault_address": 4160782336},
        300,
    )
    assert entries[1][0]["guest_rip"] == 0xFFFFFFFF81B4A76D
    assert len(entries) == 3


def test_only_the_threads_of_our_guest_are_counted(tracefs: Path) -> None:
    tracer = Tracer("test", tracefs)
    assert tracer.start() == ["kvm_page_fault"]
    counts = tracer.counts({412})
    assert counts["faults"] == [[0xF8008, 4200117, 300], [1, 0xFFFFFFFF81B4A76D, 2]]
    assert counts["async_started"] == []
    assert counts["async_ready"] == counts["exits"] == []


def test_an_event_is_counted_by_the_fields_that_the_kernel_has(tracefs: Path) -> None:
    folder = event(tracefs)
    (folder / "format").write_text("\tfield:u64 fault_address;\n")
    Tracer("test", tracefs).start()
    trigger = (folder / "trigger").read_text()
    assert trigger == "hist:keys=common_pid,fault_address:size=16384\n"


def test_nothing_is_counted_if_one_of_the_events_that_are_there_can_not_be(tracefs: Path) -> None:
    event(tracefs).with_name("kvm_async_pf_ready").mkdir()
    tracer = Tracer("test", tracefs)
    with pytest.raises(OSError, match="kvm_async_pf_ready can't be counted"):
        tracer.start()
    assert tracer.entries("kvm_page_fault") == []


def test_a_kernel_without_hist_triggers_is_told(tracefs: Path) -> None:
    (event(tracefs) / "hist").unlink()
    with pytest.raises(OSError, match=r"kvm_page_fault can't be counted.*CONFIG_HIST_TRIGGERS"):
        Tracer("test", tracefs).start()


def test_a_trigger_that_the_kernel_refuses_is_told_with_its_reason(tracefs: Path) -> None:
    (event(tracefs) / "trigger").unlink()
    (event(tracefs) / "trigger").mkdir()
    (tracefs / "instances" / "test" / "error_log").write_text("hist: error: Couldn't find field\n")
    tracer = Tracer("test", tracefs)
    with pytest.raises(OSError, match=r"kvm_page_fault can't be counted(.|\n)*Couldn't find field"):
        tracer.start()
    assert tracer.entries("kvm_page_fault") == []


def test_a_trigger_that_is_not_there_after_it_was_set_is_told(tracefs: Path) -> None:
    (event(tracefs) / "trigger").unlink()
    (event(tracefs) / "trigger").symlink_to("/dev/null")
    with pytest.raises(OSError, match="its trigger is not set"):
        Tracer("test", tracefs).start()


def test_only_the_instances_of_killed_agents_are_removed(tracefs: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    ours = instance_name().removesuffix(str(os.getpid()))
    gone = f"{ours}{ended.pid}"
    others = [instance_name(), f"{ours}x", f"hostfault-1-{ended.pid}", f"other-{ended.pid}"]
    for name in (gone, *others):
        (tracefs / "instances" / name).mkdir()
    Tracer("test", tracefs).start()
    left = {each.name for each in (tracefs / "instances").iterdir()}
    assert left == {"test", *others}


def test_a_kernel_without_tracing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Tracer("test", tmp_path / "nothing").start()


def test_page_faults_of_the_host_are_counted_in_the_range_that_is_asked_for(
    tracefs: Path,
) -> None:
    folder = tracefs / "instances" / "test" / "events" / "exceptions" / "page_fault_kernel"
    tracer = Tracer("test", tracefs)
    tracer.start()
    assert not tracer.count_touches(0x7F0000008000, 4096), "this kernel has no such tracepoint"
    assert tracer.counts({412})["touches"] is None
    folder.mkdir(parents=True)
    (folder / "hist").write_text("{ common_pid: 7 } hitcount: 3\n{ common_pid: 8 } hitcount: 2\n")
    assert tracer.count_touches(0x7F0000008000, 4096)
    trigger = (folder / "trigger").read_text()
    assert trigger.endswith(" if address >= 0x7f0000008000 && address < 0x7f0000009000\n")
    assert tracer.counts({412})["touches"] == 5, "by whatever thread"
    tracer.stop()
    assert (folder / "trigger").read_text() == f"!{trigger}", "none is left when it ends"


def test_a_thread_name_with_a_space_and_parentheses_is_read() -> None:
    fields = " ".join(["S", "1"] + ["0"] * 9 + ["250", "150"] + ["0"] * 20)
    name, seconds = parse_stat(f"412 (CPU 0/KVM) (x)) {fields}")
    assert name == "CPU 0/KVM) (x)"
    assert seconds == pytest.approx(4.0)
