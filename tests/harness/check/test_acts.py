"""What is done to a guest for a case whose truth is known."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.check import acts
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.process import spawn

DD = """#!/bin/sh
for word; do case $word in if=*) file=${word#if=} ;; esac; done
if (: <"$file") 2>/dev/null; then echo there; else echo gone; fi >>"$LOG"
"""


def test_the_second_task_looks_its_file_up_by_name_once_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lookup in a virtiofs says how long the file is: then it is the guest that knows."""
    (tmp_path / "dd").write_text(DD)
    (tmp_path / "dd").chmod(0o755)
    file, log = tmp_path / "file", tmp_path / "log"
    file.touch()
    commands: list[str] = []
    monkeypatch.setattr(acts, "_in_guest", lambda _, command: commands.append(command))
    view = SimpleNamespace(path=str(file), start=0, offset=0)
    stage = SimpleNamespace(armed=SimpleNamespace(scene=SimpleNamespace(view=view)))
    acts.DISTURBANCES["second-task"].inject(cast("Any", stage))
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    argv = ["sh", "-c", f"{commands[0]} wait"]
    with spawn(argv, log=tmp_path / "sh.log", env=env):
        poll(Deadline(20.0, "it to read"), lambda: log.exists() or None)
        file.rename(tmp_path / "elsewhere")
        before = len(log.read_text().splitlines())
        poll(
            Deadline(20.0, "more of it"), lambda: len(log.read_text().split()) > before + 3 or None
        )
    assert set(log.read_text().split()) == {"there"}
