"""The benchmark's arithmetic and its table."""

from __future__ import annotations

from hostfault.bench import medians, steps_table, table


def test_the_median_is_taken_over_the_runs_that_have_a_phase() -> None:
    runs = [{"restore": 1.0, "all": 9.0}, {"restore": 3.0, "all": 5.0}, {"all": 7.0}]
    assert medians(runs) == {"restore": 2.0, "all": 7.0}


def test_the_table_has_a_dash_where_a_run_lacks_a_phase() -> None:
    lines = table({"host boot": 4.0, "all": 30.0}, {"restore": 0.5, "all": 4.0}).splitlines()
    assert lines[1].split() == ["host", "boot", "4.00", "-"]
    assert lines[2].split() == ["restore", "-", "0.50"]
    assert lines[-1].split() == ["all", "30.00", "4.00"]


def test_a_phase_that_the_table_does_not_know_is_shown_too() -> None:
    assert "new phase" in table({"new phase": 1.0}, {})


def test_a_step_is_shown_with_its_build_its_boot_and_all() -> None:
    phases = {"build": 40.0, "host boot": 6.0, "guest boot": 9.0, "touch to verdict": 1.0}
    lines = steps_table({"7.3.4+fail-at-once": {**phases, "all": 60.0}}).splitlines()
    assert lines[1].split() == ["7.3.4+fail-at-once", "40.0", "15.0", "1.0", "60.0"]
