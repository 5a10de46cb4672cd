"""What is done to a guest for a case whose truth is known."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hostfault.backing import GuestView
from hostfault.check import acts
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.process import spawn

READING = """#!/bin/sh
for word; do case $word in if=*) echo "${word#if=}" >>"$LOG" ;; esac; done
"""


def stage_at(path: str, **more: Any) -> acts.Stage:
    view = GuestView(path, 0, 65536, 32768)
    armed = SimpleNamespace(scene=SimpleNamespace(view=view))
    return acts.Stage(cast("Any", None), cast("Any", SimpleNamespace(**more)), cast("Any", armed))


def test_the_second_reader_reads_the_page_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dd").write_text(READING)
    (tmp_path / "dd").chmod(0o755)
    log = tmp_path / "log"
    commands: list[str] = []
    monkeypatch.setattr(acts, "_in_guest", lambda _, command: commands.append(command))
    acts.DISTURBANCES["second-reader"].inject(stage_at("/mnt/data"))
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    with spawn(["sh", "-c", f"{commands[0]} wait"], log=tmp_path / "sh.log", env=env):
        poll(
            Deadline(20.0, "it to read"),
            lambda: (log.exists() and len(log.read_text().split()) > 3) or None,
        )
    assert set(log.read_text().split()) == {"/mnt/data"}


def test_the_second_task_touches_the_page_before_the_fault_and_once_after_the_word() -> None:
    """A lookup or an open tells a guest how long its file is: then it sends SIGBUS by itself."""
    ours, probe = socket.socketpair()
    asked: list[str] = []

    def answer() -> None:
        asked.append(probe.recv(4096).decode())
        probe.sendall(b'{"step": "armed"}\n')

    with ours, probe:
        probe.sendall(b'{"step": "waiting"}\n')
        answers = threading.Thread(target=answer)
        answers.start()
        stage = stage_at("/mnt/data", guest=SimpleNamespace(open=lambda *_: ours))
        doing = acts.DISTURBANCES["second-task"]
        doing.inject(stage)
        answers.join()
        assert "--offset 32768 --first 32768 --access vector " in asked[0]
        doing.meanwhile(stage, 0.1)
        doing.meanwhile(stage, 0.2)
        assert probe.recv(4096) == b"go\n"
