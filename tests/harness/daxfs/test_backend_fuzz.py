"""The fuzzers find nothing within seconds, and everything that is planted for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import daxfs_frontend
import daxfs_fuzz as fuzz
import daxfs_served
import pytest
from daxfs_fuzz_requests import Requests
from daxfs_served import (
    CrashError,
    EscapeError,
    FoundError,
    LeakError,
    SlowError,
    WedgeError,
    found,
)

from hostfault.daxfs import files, names, session
from hostfault.daxfs.share import FuseRequest, Share
from hostfault.daxfs.virtqueue import Virtqueue

SEED = 2020
GETATTR, READ, MKDIR, RELEASE, RENAME = 3, 15, 9, 18, 12


@pytest.fixture(autouse=True)
def nothing_found() -> Iterator[None]:
    found.clear()
    yield
    found.clear()


@pytest.mark.parametrize(
    ("name", "examples", "least"),
    [("messages", 150, 300), ("rings", 150, 400), ("requests", 250, 8000)],
)
def test_nothing_is_found(name: str, examples: int, least: int) -> None:
    done = fuzz.FUZZERS[name](SEED, fuzz.options(examples))
    assert found == []
    assert done > least


def planted(monkeypatch: pytest.MonkeyPatch, opcode: int, operation: session.Operation) -> None:
    """Let the daemons that are forked from now on do something else."""
    monkeypatch.setattr(session, "OPERATIONS", {**session.OPERATIONS, opcode: operation})


def wrong_bytes(share: Share, request: FuseRequest) -> bytes:
    return files.read(share, request)[::-1]


def renames_too_much(share: Share, request: FuseRequest) -> bytes:
    names.rename(share, request)
    os.close(os.open("a", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=share.nodes.root.fd))
    return b""


def leaves_a_descriptor(share: Share, request: FuseRequest) -> bytes:
    os.dup(share.nodes.root.fd)
    return files.release(share, request)


def writes_beside_the_share(share: Share, request: FuseRequest) -> bytes:
    fd = os.open("../outside", os.O_DIRECTORY, dir_fd=share.nodes.root.fd)
    os.close(os.open("made", os.O_CREAT, dir_fd=fd))
    os.close(fd)
    return names.mkdir(share, request)


def takes_long(share: Share, request: FuseRequest) -> bytes:
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return files.getattr_(share, request)


def sleeps(share: Share, request: FuseRequest) -> bytes:
    time.sleep(3)
    return files.getattr_(share, request)


def dies(share: Share, request: FuseRequest) -> bytes:
    os.kill(os.getpid(), signal.SIGBUS)
    return b""


def has_a_bug(share: Share, request: FuseRequest) -> bytes:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("opcode", "operation", "kind"),
    [
        (READ, wrong_bytes, FoundError),
        (RENAME, renames_too_much, FoundError),
        (RELEASE, leaves_a_descriptor, LeakError),
        (MKDIR, writes_beside_the_share, EscapeError),
        (GETATTR, takes_long, SlowError),
        (GETATTR, sleeps, WedgeError),
        (GETATTR, dies, CrashError),
        (GETATTR, has_a_bug, FoundError),
    ],
)
def test_what_is_planted_in_an_operation_is_found(
    monkeypatch: pytest.MonkeyPatch,
    opcode: int,
    operation: session.Operation,
    kind: type[FoundError],
) -> None:
    planted(monkeypatch, opcode, operation)
    if kind is WedgeError:  # a slow answer is one, too, for who has little patience
        monkeypatch.setattr(daxfs_frontend, "PATIENCE", 1.0)
    with pytest.raises(BaseException):  # noqa: B017, PT011 (what hypothesis makes of it)
        fuzz.fuzz_requests(SEED, fuzz.options(60, shrink=False))
    assert type(found[0]) is kind, found


def test_a_ring_that_is_neither_served_nor_given_up_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Virtqueue, "fail", lambda queue: setattr(queue, "broken", True))
    monkeypatch.setattr(daxfs_frontend, "PATIENCE", 1.0)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        fuzz.fuzz_rings(SEED, fuzz.options(100, shrink=False))
    assert type(found[0]) is WedgeError


def test_a_message_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(self: object, index: int) -> object:
        return self._queues[index]  # type: ignore[attr-defined]

    monkeypatch.setattr("hostfault.daxfs.device.Device._queue", unchecked)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        fuzz.fuzz_messages(SEED, fuzz.options(100, shrink=False))
    assert isinstance(found[0], CrashError)
    assert "IndexError" in str(found[0])


def test_the_program_counts_and_tells() -> None:
    program = Path(fuzz.__file__)
    line = [sys.executable, str(program), "--minutes", "0", "--seed", "7", "--only", "messages"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 crashes, 0 wedges, 0 escapes, 0 leaks, 0 slow answers, 0 differences" in done.stdout
    assert "0 rings, 0 requests" in done.stdout


def test_the_program_s_exit_code_tells_what_it_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finds(number: int, how: object) -> int:
        raise WedgeError(f"of seed {number}")

    def breaks(number: int, how: object) -> int:
        raise OSError("of its own")

    for fuzzer, code in ((finds, 1), (breaks, 2)):
        monkeypatch.setattr(fuzz, "FUZZERS", dict.fromkeys(fuzz.FUZZERS, fuzzer))
        monkeypatch.setattr(sys, "argv", ["ci/fuzz", "--minutes", "0", "--only", "rings"])
        found.clear()
        assert fuzz.main() == code
    told = capsys.readouterr()
    assert "1 wedges" in told.out
    assert "of seed 0" in told.err
    assert "trouble of its own" in told.err


def test_canaries_die_of_anything_that_is_not_the_share(tmp_path: Path) -> None:
    def wreck(act: Callable[[Path], object]) -> None:
        sandbox = daxfs_served.Sandbox()
        try:
            sandbox.check()
            act(sandbox.top)
            with pytest.raises(EscapeError):
                sandbox.check()
        finally:
            sandbox.close()

    wreck(lambda top: (top / "secret").write_bytes(b"other"))
    wreck(lambda top: (top / "new").touch())
    wreck(lambda top: (top / "outside" / "new").touch())
    wreck(lambda top: (top / "secret").rename(top / "outside" / "secret"))
    wreck(lambda top: (top / "secret").unlink())


def test_requests_are_counted() -> None:
    before = Requests.done
    assert fuzz.fuzz_requests(1, fuzz.options(2)) == Requests.done - before > 0
