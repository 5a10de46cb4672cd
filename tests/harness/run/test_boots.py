"""Boots that are counted: what a table says of those that failed."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from hostfault import bench
from hostfault.case.model import Scenario
from hostfault.case.settings import CPUS, Settings
from hostfault.host.emulated import EmulatedHost
from hostfault.plumbing.errors import HostfaultError, SetupError
from hostfault.run import boots as module
from hostfault.run.boots import Boot, boots, boots_table, reason

LOST = (
    "the guest stopped while it booted, run state internal-error:\n"
    "KVM internal error. Suberror: 3\nextra data[0]: 0x80000b0e\n"
)


class ScriptedHost(EmulatedHost):
    """Boots end as they are told, in order; None is a good one."""

    def __init__(self, ends: list[HostfaultError | None]) -> None:
        object.__setattr__(self, "ends", ends)
        object.__setattr__(self, "folders", [])

    def boot_alone(self, scenario: Scenario, folder: Path) -> None:
        self.__dict__["folders"].append(folder)
        if error := self.__dict__["ends"].pop(0):
            raise error


class ScriptedLab:
    """A lab whose host is scripted."""

    def __init__(self, host: ScriptedHost) -> None:
        self.host = host
        self.asked: list[Settings] = []

    def __call__(self, settings: Settings) -> ScriptedLab:
        self.asked.append(settings)
        return self

    def __enter__(self) -> ScriptedLab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing was begun."""

    def facts(self) -> None:
        """All is there but for this kernel."""
        if self.asked[-1].host_kernel == "9.9":
            raise SetupError("no such kernel")


def test_a_kernel_that_cannot_be_had_is_an_error_before_anything_boots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = ScriptedHost([None])
    monkeypatch.setattr(module, "Lab", ScriptedLab(host))
    with pytest.raises(SetupError, match="no such kernel"):
        boots(["6.17", "9.9"], 1, tmp_path, print)
    assert not host.__dict__["folders"]


def test_a_boot_that_fails_is_counted_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = ScriptedHost([None, HostfaultError(LOST), None, SetupError("the host panicked")])
    monkeypatch.setattr(module, "Lab", ScriptedLab(host))
    said: list[str] = []
    found = boots(["6.17", "6.18"], 2, tmp_path, said.append)
    assert [(boot.kernel, bool(boot.why)) for boot in found] == [
        ("6.17", False),
        ("6.17", True),
        ("6.18", False),
        ("6.18", True),
    ]
    assert len(set(host.__dict__["folders"])) == len(said) == len(found)


def test_like_reasons_are_counted_together() -> None:
    table = boots_table(
        [
            Boot("6.18", 20.0, reason(LOST)),
            Boot("6.18", 22.0, reason("lost\n" + LOST)),
            Boot("6.18", 10.0, ""),
            Boot("6.18", 14.0, ""),
            Boot("7.3.4", 9.0, ""),
        ]
    )
    rows = [line.split(maxsplit=4) for line in table.splitlines()[1:]]
    assert rows[0] == ["6.18", "4", "2", "12.0", "2 x KVM internal error. Suberror: 3"]
    assert rows[1] == ["7.3.4", "1", "0", "9.0"]


def test_a_kernel_that_never_boots_has_no_seconds() -> None:
    row = boots_table([Boot("6.18", 20.0, "x")]).splitlines()[1].split()
    assert row[:4] == ["6.18", "1", "1", "-"]


def test_numbers_do_not_tell_reasons_apart() -> None:
    assert reason("SSH of the guest took 60.0 s\nmore") == reason("SSH of the guest took 61.5 s")


def test_boots_are_of_the_cpu_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = ScriptedLab(ScriptedHost([None, None]))
    monkeypatch.setattr(module, "Lab", lab)
    for cpu in CPUS:
        boots(["6.18"], 1, tmp_path, lambda _: None, cpu)
    assert list(dict.fromkeys(settings.cpu for settings in lab.asked)) == list(CPUS)


@pytest.mark.parametrize(("why", "code"), [("", 0), ("lost", 1)])
def test_the_exit_code_says_whether_a_boot_failed(
    why: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def scripted(kernels: list[str], count: int, _f: Path, _s: object, cpu: str) -> list[Boot]:
        asked.append((kernels, count, cpu))
        return [Boot("6.18", 1.0, why)]

    monkeypatch.setattr(bench, "boots", scripted)
    line = ["--boots", "3", "--host-kernel", "6.18", "--cpu", "intel"]
    assert bench.main(line) == code
    assert asked == [(["6.18"], 3, "intel")]


def test_every_catalogued_kernel_is_booted_unless_some_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench, "boots", lambda kernels, *_: asked.append(kernels) or [])
    assert bench.main(["--boots", "1"]) == 0
    assert {"6.1", "6.18", "7.3.4"} <= set(asked[0])
