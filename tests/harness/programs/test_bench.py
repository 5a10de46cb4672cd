"""The benchmark's arithmetic and its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostfault import bench
from hostfault.bench import medians, set_table, steps_table, table
from hostfault.case.settings import CPUS, Settings
from hostfault.kernel.buildroot import BuildRoot
from hostfault.kernel.kvm_only import Base
from hostfault.kernel.whole import Tree, Whole
from hostfault.plumbing.cache import Cache
from hostfault.plumbing.errors import UsageError


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


@pytest.mark.parametrize("cpu", CPUS)
def test_what_is_measured_is_the_cpu_that_was_asked_for(
    cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def once(settings: Settings, _root: Path, _folder: Path) -> dict[str, float]:
        asked.append(settings)
        return {"all": 1.0}

    monkeypatch.setattr(bench, "once", once)
    monkeypatch.setattr(bench, "_build", lambda kernel, _cache: kernel)
    assert bench.main(["--warm", "1", "--cpu", cpu]) == 0
    assert bench.main(["--step", "7.3.4+fail-at-once", "--cpu", cpu]) == 0
    assert [settings.cpu for settings in asked] == [cpu] * 3


def test_a_step_is_shown_with_its_build_its_boot_and_all() -> None:
    phases = {"build": 40.0, "host boot": 6.0, "guest boot": 9.0, "touch to verdict": 1.0}
    lines = steps_table({"7.3.4+fail-at-once": {**phases, "all": 60.0}}).splitlines()
    assert lines[1].split() == ["7.3.4+fail-at-once", "40.0", "15.0", "1.0", "60.0"]


def test_a_set_is_told_with_its_cases_an_hour_and_where_the_time_goes() -> None:
    runs = [{"restore": 0.5, "arm": 1.0}, {"restore": 0.7, "arm": 2.0}, {}]
    first, _, *lines = set_table("quick", runs, 6.0).splitlines()
    assert first == "set quick: 3 cases in 6 s, 1,800 an hour; 1 without a verdict"
    assert [line.split() for line in lines] == [
        ["restore", "1.2", "20%", "0.60"],
        ["arm", "3.0", "50%", "1.50"],
        ["else", "1.8", "30%", "-"],
    ]


def test_a_set_that_is_unknown_is_told() -> None:
    with pytest.raises(UsageError, match="no set 'all'; known are dax"):
        bench.main(["--set", "all"])


class WholeKernels:
    """Stands in for the builds of whole kernels, which are kept by what is outside of KVM."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept
        self.built: list[str] = []

    def __call__(self, tree: Tree, _root: BuildRoot, _cache: Cache) -> Whole:
        if not self._kept.exists():
            self._kept.mkdir()
            (self._kept / "kvm").write_text(tree.kvm)
            self.built.append(tree.kvm)
        base = Base("key", "7.3.4", self._kept / "bzImage", self._kept / "modules", self._kept)
        return Whole(base, (self._kept / "kvm").read_text(), "ab")


def test_a_whole_kernel_is_built_where_kvm_alone_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    kept = cache.obtain("whole-kernels", "key", lambda _: None)
    cache.discard(kept)
    whole = WholeKernels(kept)
    monkeypatch.setattr(bench, "whole_kernel", whole)
    monkeypatch.setattr(bench, "build_root", lambda _cache, _suite: None)
    contents = iter(("as it was", "as it was", "changed"))
    monkeypatch.setattr(bench, "read_tree", lambda path: FakeTree(path, next(contents)))
    names = [bench._build("whole:tree:/linux", cache) for _ in range(3)]
    assert whole.built == ["as it was", "changed"]
    assert set(names) == {f"{kept}/bzImage:{kept}/modules"}


class FakeTree:
    version = "7.3.4"

    def __init__(self, path: Path, kvm: str) -> None:
        assert path == Path("/linux")
        self.kvm = kvm
