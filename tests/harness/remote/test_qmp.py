"""The QMP recorder against a scripted peer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    DeadlineError,
    HostfaultError,
    LaunchError,
)
from hostfault.remote.qmp import ANSWER, Line, Recorder

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": []}}
STOP = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}


class Peer:
    """One connection of a QEMU that does as the test says."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rwb", buffering=0)

    def send(self, *messages: dict[str, object]) -> None:
        self._stream.write(b"".join(json.dumps(each).encode() + b"\r\n" for each in messages))

    def take(self) -> dict[str, object]:
        """One message: the client sends no line ends, so read until the JSON is whole."""
        text = b""
        while True:
            text += self._stream.read(1)
            if text.endswith(b"}"):
                with suppress(ValueError):
                    message: dict[str, object] = json.loads(text)
                    return message

    def send_raw(self, data: bytes) -> None:
        with suppress(OSError):  # the client may have hung up
            self._stream.write(data)

    def negotiate(self) -> None:
        self.send(GREETING)
        self.answer({})

    def answer(self, value: object, *before: dict[str, object]) -> None:
        request = self.take()
        known = {"id": request["id"]} if "id" in request else {}  # the first command has none
        self.send(*before, {"return": value, **known})


@contextmanager
def qemu(path: Path, script: Callable[[Peer], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                script(Peer(connection))
                connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


@contextmanager
def recording(
    tmp_path: Path, script: Callable[[Peer], None], patience: float = ANSWER
) -> Iterator[Recorder]:
    path = tmp_path / "qmp"
    transcript = tmp_path / "qmp.jsonl"
    with qemu(path, script), Recorder("test", transcript, patience=patience) as recorder:
        recorder.connect(path, Deadline(10.0, "the scripted QEMU"))
        yield recorder


@contextmanager
def on_a_line(tmp_path: Path) -> Iterator[tuple[Recorder, Line, Peer, threading.Event]]:
    """A recorder and a line to a QEMU; the event closes QEMU's end, without an end of file."""
    ours, theirs = socket.socketpair()
    closed = threading.Event()
    with ours, theirs, Recorder("test", tmp_path / "qmp.jsonl") as recorder:
        yield recorder, Line(ours, closed.is_set), Peer(theirs), closed


def test_a_line_is_picked_up_when_its_qemu_begins_to_speak(tmp_path: Path) -> None:
    with on_a_line(tmp_path) as (recorder, line, peer, _):
        begins = threading.Timer(0.3, peer.negotiate)  # QEMU is started after the line is there
        begins.start()
        recorder.pick_up(line, Deadline(10.0, "the scripted QEMU"), lambda: None)
        begins.join()
        assert recorder.version == "11.1.3"


def test_a_qemu_that_dies_before_it_speaks_is_not_waited_for(tmp_path: Path) -> None:
    def gone() -> None:
        raise LaunchError("QEMU", ["qemu"], 1, "no such device")

    with on_a_line(tmp_path) as (recorder, line, _, _), pytest.raises(LaunchError):
        recorder.pick_up(line, Deadline(60.0, "the scripted QEMU"), gone)


def test_a_qemu_that_never_speaks_ends_at_the_deadline(tmp_path: Path) -> None:
    with on_a_line(tmp_path) as (recorder, line, _, _), pytest.raises(DeadlineError):
        recorder.pick_up(line, Deadline(0.3, "the scripted QEMU"), lambda: None)


def test_a_line_goes_on_in_a_fork_without_a_greeting(tmp_path: Path) -> None:
    with on_a_line(tmp_path) as (recorder, line, peer, _):
        answers = threading.Thread(target=peer.answer, args=({"status": "running"}, STOP))
        answers.start()
        recorder.go_on(line, "11.1.3")
        assert recorder.execute("query-status") == {"status": "running"}
        answers.join()
        assert recorder.version == "11.1.3"
        assert [event.name for event in recorder.events()] == ["STOP"]


def test_a_qemu_that_closes_its_end_of_a_line_is_a_lost_connection(tmp_path: Path) -> None:
    with on_a_line(tmp_path) as (recorder, line, _, closed):
        closing = threading.Timer(0.3, closed.set)
        closing.start()
        soon = Deadline(10.0, "the recorder to see that the line is closed")
        recorder.go_on(line, "11.1.3")
        with pytest.raises(ConnectionLostError):
            recorder.execute("query-status")
        closing.join()
        assert not soon.passed()  # a command that is not answered takes longer


def test_an_event_that_comes_before_the_reply_is_kept(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.answer({"status": "internal-error"}, STOP)

    with recording(tmp_path, script) as recorder:
        assert recorder.execute("query-status") == {"status": "internal-error"}
        assert [event.name for event in recorder.events()] == ["STOP"]


def test_an_event_just_before_the_connection_dies_is_kept(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.answer({})
        peer.send(STOP)

    with recording(tmp_path, script) as recorder:
        recorder.execute("cont")
        event = recorder.wait_for("STOP", Deadline(10.0, "STOP"))
        assert event.host is False


def test_every_message_in_both_directions_is_in_the_transcript(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.answer({"status": "running"})

    with recording(tmp_path, script) as recorder:
        recorder.execute("query-status")
        assert recorder.version == "11.1.3"
    lines = [json.loads(line) for line in (tmp_path / "qmp.jsonl").read_text().splitlines()]
    assert [line["way"] for line in lines] == ["<-", "->", "<-", "->", "<-"]
    assert lines[3]["msg"]["execute"] == "query-status"


def test_a_qemu_that_dies_at_a_command_is_a_lost_connection(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.take()

    with recording(tmp_path, script) as recorder, pytest.raises(ConnectionLostError):
        recorder.execute("query-status")


@pytest.mark.parametrize(("patience", "timeout"), [(60.0, 0.2), (0.2, None)])
def test_a_qemu_that_does_not_answer_is_a_lost_connection(
    patience: float, timeout: float | None, tmp_path: Path
) -> None:
    asked = threading.Event()
    done = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.take()
        asked.set()
        done.wait(10)

    with recording(tmp_path, script, patience) as recorder:
        with pytest.raises(ConnectionLostError):
            recorder.execute("query-status", timeout=timeout)
        assert asked.is_set()
        done.set()


@pytest.mark.parametrize(
    "last", [b"", b'{"event', b"[1]\r\n", b"x" * (20 << 20)], ids=["none", "half", "list", "long"]
)
def test_whatever_a_qemu_says_last_one_can_hang_up(tmp_path: Path, last: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.answer({})
        peer.send_raw(last)

    with recording(tmp_path, script) as recorder:
        recorder.execute("cont")
        with pytest.raises(ConnectionLostError):
            recorder.execute("cont")
        recorder.disconnect()


def test_a_refused_command_carries_the_words_of_qemu(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        request = peer.take()
        peer.send({"error": {"class": "GenericError", "desc": "no way"}, "id": request["id"]})

    with recording(tmp_path, script) as recorder, pytest.raises(HostfaultError, match="no way"):
        recorder.execute("device_add")


def test_nobody_listening_ends_at_the_deadline_and_says_what_was_seen(tmp_path: Path) -> None:
    nobody = tmp_path / "nobody"
    with Recorder("test", tmp_path / "qmp.jsonl") as recorder, pytest.raises(DeadlineError) as no:
        recorder.connect(nobody, Deadline(0.2, "QMP"))
    assert "FileNotFoundError" in str(no.value)


def test_a_dead_qemu_is_not_waited_for(tmp_path: Path) -> None:
    def dead() -> None:
        raise LaunchError("QEMU", ["qemu"], 1, "bad option")

    nobody = tmp_path / "nobody"
    with Recorder("test", tmp_path / "qmp.jsonl") as recorder, pytest.raises(LaunchError):
        recorder.connect(nobody, Deadline(10.0, "QMP"), dead)


def test_waiting_for_an_event_that_never_comes_ends_at_the_deadline(tmp_path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.answer({})
        peer.send({"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 2}})

    with recording(tmp_path, script) as recorder:
        recorder.execute("cont")
        recorder.wait_for("RESUME", Deadline(10.0, "RESUME"))
        with pytest.raises(DeadlineError, match="RESUME"):
            recorder.wait_for("STOP", Deadline(0.2, "STOP"))
