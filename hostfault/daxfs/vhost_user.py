"""vhost-user messages, and the sockets that carry them.

Source: QEMU, docs/interop/vhost-user.rst, and for SHMEM (protocol feature 22, front-end request
44, back-end requests 9 and 10) what QEMU 11.1 sends.
"""

from __future__ import annotations

import array
import enum
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from hostfault.daxfs.wire import U8, U32, U64, MalformedError, Pad7, Wire

VERSION = 1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

MAX_PAYLOAD = 4096  # bytes; the longest message has 2056
MAX_FDS = 8  # SET_MEM_TABLE brings one a region

# Bits of GET_FEATURES: VIRTIO 1.2 section 6, and bit 30 of vhost-user.
F_LOG_ALL = 1 << 26  # VHOST_F_LOG_ALL: log the pages that are stored to
F_INDIRECT_DESC = 1 << 28
F_PROTOCOL_FEATURES = 1 << 30
F_VERSION_1 = 1 << 32

# Bits of GET_PROTOCOL_FEATURES.
P_MQ = 1 << 0
P_REPLY_ACK = 1 << 3
P_BACKEND_REQ = 1 << 5
P_CONFIG = 1 << 9
P_BACKEND_SEND_FD = 1 << 10
P_CONFIGURE_MEM_SLOTS = 1 << 15
P_SHMEM = 1 << 22


class PeerError(Exception):
    """The front-end broke the protocol in a way that ends the connection."""


class Request(enum.IntEnum):
    """What the front-end asks of the back-end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    GET_SHMEM_CONFIG = 44


class BackendRequest(enum.IntEnum):
    """What the back-end asks of the front-end."""

    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


@dataclass(frozen=True)
class Header(Wire):
    """Before every payload."""

    request: U32
    flags: U32  # VERSION, REPLY, NEED_REPLY
    length: U32  # of the payload, in bytes


@dataclass(frozen=True)
class Number(Wire):
    """A single number."""

    value: U64


@dataclass(frozen=True)
class VringState(Wire):
    """Something about one ring."""

    index: U32
    value: U32


@dataclass(frozen=True)
class VringAddress(Wire):
    """Where a ring lies, in addresses of the front-end."""

    index: U32
    flags: U32
    descriptors: U64
    used: U64
    available: U64
    log: U64


VRING_INDEX_MASK = 0xFF  # of the number that comes with SET_VRING_KICK, _CALL and _ERR
VRING_NO_FD = 0x100


@dataclass(frozen=True)
class MemoryRegion(Wire):
    """A part of the guest's memory."""

    guest: U64  # guest physical address
    length: U64
    user: U64  # address in the front-end
    offset: U64  # in the file that comes with it

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells it from others; REM_MEM_REG need not repeat the offset."""
        return self.guest, self.user, self.length


MEM_REG_PADDING = 8  # bytes before the region of ADD_MEM_REG and REM_MEM_REG


@dataclass(frozen=True)
class MemoryTable(Wire):
    """Before the regions of SET_MEM_TABLE."""

    regions: U32
    padding: U32


@dataclass(frozen=True)
class ConfigRange(Wire):
    """Before the bytes of GET_CONFIG and SET_CONFIG."""

    offset: U32
    length: U32
    flags: U32


MAX_CONFIG = 256  # bytes of configuration space


@dataclass(frozen=True)
class ShmemConfig(Wire):
    """Before the 256 sizes of GET_SHMEM_CONFIG."""

    regions: U32
    padding: U32 = 0


SHMEM_SLOTS = 256


@dataclass(frozen=True)
class ShmemRange(Wire):
    """Payload of SHMEM_MAP and SHMEM_UNMAP."""

    shmid: U8
    padding: Pad7
    fd_offset: U64
    shm_offset: U64
    length: U64
    flags: U64  # SHMEM_WRITABLE


SHMEM_WRITABLE = 1


@dataclass
class Message:
    """A message as received; whoever wants to keep a descriptor takes it out of ``fds``."""

    request: int
    flags: int
    payload: bytes
    fds: list[int] = field(default_factory=list)

    def only_fd(self) -> int:
        """The only descriptor, which is still the message's. Raises MalformedError."""
        if len(self.fds) != 1:
            raise MalformedError(f"{len(self.fds)} file descriptors instead of 1")
        return self.fds[0]

    def take_fd(self) -> int:
        """The only descriptor, which is now the caller's. Raises MalformedError."""
        fd = self.only_fd()
        self.fds.clear()
        return fd

    def number(self) -> int:
        """The payload as one number."""
        return Number.decode(self.payload).value

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


def name_of(request: int) -> str:
    """A request as text for the log."""
    try:
        return Request(request).name
    except ValueError:
        return f"request {request}"


class FrontEndChannel:
    """A connected UNIX stream socket that carries messages in both directions.

    It never waits: a peer that sends half a message, or does not read, holds up nobody else.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.ended = False  # whether the peer hung up between two messages
        self._socket = connection
        self._data = b""  # of the message that is under way
        self._fds: list[int] = []

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._forget()
        self._socket.close()

    def send(
        self, request: int, payload: bytes, flags: int = REPLY, fds: Iterable[int] = ()
    ) -> None:
        """Send a message; a peer that is gone shows when it is to be heard.

        Raises :class:`PeerError`, also if the peer has left too much unread.
        """
        data = Header(request, VERSION | flags, len(payload)).encode() + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        how = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        try:
            sent = self._socket.sendmsg([data], ancillary, how)
        except (BrokenPipeError, ConnectionResetError):
            return
        except OSError as error:
            raise PeerError(f"could not send to the front-end: {error}") from error
        if sent != len(data):
            raise PeerError(f"the front-end took {sent} of {len(data)} bytes")

    def receive(self) -> Message | None:
        """The next message, or None if there is no whole one yet. Raises :class:`PeerError`."""
        try:
            if not self._take(Header.width()):
                return None
            header = Header.decode(self._data)
            if header.flags & VERSION_MASK != VERSION:
                raise PeerError(f"message of version {header.flags & VERSION_MASK}")
            if header.length > MAX_PAYLOAD:
                raise PeerError(f"payload of {header.length} bytes")
            if not self._take(Header.width() + header.length):
                return None
        except (PeerError, MalformedError, OSError) as error:
            self._forget()
            raise PeerError(str(error)) from error
        payload = self._data[Header.width() :]
        message = Message(header.request, header.flags, payload, self._fds)
        self._data, self._fds = b"", []
        return message

    def _take(self, length: int) -> bool:
        """Read up to byte ``length`` of a message; returns whether all of them are there."""
        space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        how = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
        while len(self._data) < length:
            try:
                part, ancillary, flags, _ = self._socket.recvmsg(
                    length - len(self._data), space, how
                )
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return self._end()  # it ended before it had read all of our replies
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += _descriptors(content)
            if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_FDS:
                raise PeerError("too many file descriptors")
            if not part:
                return self._end()
            self._data += part
        return True

    def _end(self) -> bool:
        """The peer has hung up. Raises MalformedError if it did so within a message."""
        if self._data:
            request = Header.decode(self._data).request
            raise MalformedError(f"end within the payload of {name_of(request)}")
        self.ended = True
        return False

    def _forget(self) -> None:
        """Drop what there is of a message."""
        self._data = b""
        while self._fds:
            os.close(self._fds.pop())


def _descriptors(content: bytes) -> list[int]:
    numbers = array.array("i")
    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return list(numbers)
