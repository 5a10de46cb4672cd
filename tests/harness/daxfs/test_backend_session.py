"""A bug in an operation must not take the guest's file system away."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest

from hostfault.daxfs import session
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.nodes import Handles, Nodes
from hostfault.daxfs.share import FuseRequest, Share
from hostfault.daxfs.vhost_user import PeerError
from hostfault.daxfs.window import Window

GETATTR = 3


def ask(served: session.Session, opcode: int, body: bytes) -> int:
    """The error in the reply to a request."""
    header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 7, 1, 0, 0, 0, 0, 0)
    length, error, unique = struct.unpack_from("<IiQ", reply := served.answer(header + body, 4096))
    assert (length, unique) == (len(reply), 7)
    return int(error)


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def served(tmp_path: Path, stream: io.BytesIO) -> session.Session:
    log = EventLog(stream)
    window = Window(1 << 21, lambda request, where, fd: True, log)
    started = session.Session(Share(Nodes(tmp_path), Handles(), window, log))
    assert ask(started, 26, struct.pack("<4I", 7, 38, 0, 0)) == 0
    return started


def raising(error: Exception) -> session.Operation:
    def operation(share: Share, request: FuseRequest) -> bytes:
        raise error

    return operation


def test_an_unexpected_exception_is_an_error_reply_and_a_line_in_the_log(
    served: session.Session, stream: io.BytesIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OPERATIONS", {GETATTR: raising(RuntimeError("oops"))})
    assert ask(served, GETATTR, b"") == -5
    line = json.loads(stream.getvalue().splitlines()[-1])
    assert (line["event"], line["opcode"], line["error"]) == ("bug", 3, "RuntimeError('oops')")


def test_the_end_of_the_front_end_is_no_error_reply(
    served: session.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OPERATIONS", {GETATTR: raising(PeerError("gone"))})
    with pytest.raises(PeerError, match="gone"):
        ask(served, GETATTR, b"")
