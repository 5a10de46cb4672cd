"""The vhost-user device: what the front-end asks, the rings, and the loop that serves both.

One thread does everything. While it waits for the front-end's answer to SHMEM_MAP it goes on
serving the front-end's own requests: QEMU sends ADD_MEM_REG before it answers, and waits.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hostfault.daxfs import vhost_user as vu
from hostfault.daxfs.eventlog import EventLog
from hostfault.daxfs.fuse import InHeader
from hostfault.daxfs.memory import MAX_REGIONS, GuestMemory, NotBackedError, OutsideMemoryError
from hostfault.daxfs.nodes import Handles, Nodes
from hostfault.daxfs.pace import Pace
from hostfault.daxfs.session import Session, fault
from hostfault.daxfs.share import Share
from hostfault.daxfs.vhost_user import BackendRequest, Message, PeerError, Request
from hostfault.daxfs.virtqueue import MAX_SIZE, Chain, RingError, Virtqueue
from hostfault.daxfs.window import SHMID, Window
from hostfault.daxfs.wire import MalformedError

QUEUES = 2  # high priority, requests (VIRTIO 1.2, 5.11.2)
FEATURES = vu.F_VERSION_1 | vu.F_INDIRECT_DESC | vu.F_PROTOCOL_FEATURES
PROTOCOL_FEATURES = (
    vu.P_MQ
    | vu.P_REPLY_ACK
    | vu.P_BACKEND_REQ
    | vu.P_CONFIG
    | vu.P_BACKEND_SEND_FD
    | vu.P_CONFIGURE_MEM_SLOTS
    | vu.P_SHMEM
)


@dataclass(frozen=True)
class DaemonSettings:
    """What the daemon is started with."""

    shared: Path
    window: int  # bytes
    tag: str
    max_nodes: int
    max_handles: int
    keep_free: int = 0  # bytes of the host's file system that a guest can't fill
    polls: bool = False  # look for requests ourselves, so that the driver need not notify


class Device:
    """One connection to a front-end."""

    def __init__(self, connection: socket.socket, settings: DaemonSettings, log: EventLog) -> None:
        self._main = vu.FrontEndChannel(connection)
        self._backend: vu.FrontEndChannel | None = None
        self._settings = settings
        self._log = log
        self._protocol_features = 0
        self._memory = GuestMemory()
        self._queues = [Virtqueue(index) for index in range(QUEUES)]
        self._kicked: set[Virtqueue] = set()
        self._ended = False
        self._polled: set[int] = set()  # the kick descriptors that _poll knows
        self._pace = Pace()  # of looking into the rings, where we poll
        self._poll = _poll(self._main.fileno())
        window = Window(settings.window, self._ask, log)
        nodes = Nodes(settings.shared, settings.max_nodes)
        handles = Handles(settings.max_handles)
        self._session = Session(Share(nodes, handles, window, log, settings.keep_free))
        # Tag and number of request queues (VIRTIO 1.2, 5.11.4).
        self._config = struct.pack("=36sI", settings.tag.encode(), QUEUES - 1)
        self._constants = _constants(settings.window)

    def serve(self) -> None:
        """Serve until the front-end hangs up. Raises :class:`PeerError`."""
        while not self._ended:
            self._wait(block=not self._kicked)
            if self._settings.polls:
                self._kicked |= {queue for queue in self._queues if queue.running}
            for queue in list(self._kicked):
                self._serve_queue(queue)

    def _wait(self, *, block: bool) -> None:
        """Take in what the front-end says and which rings were kicked."""
        kicks = {queue.kick_fd: queue for queue in self._queues if queue.running}
        if kicks.keys() != self._polled:
            self._polled = set(kicks)
            self._poll = _poll(self._main.fileno(), *kicks)
        patience = self._pace.wait() if self._settings.polls and kicks else None
        ready = dict(self._poll.poll(patience if block else 0))
        for fd in ready.keys() & kicks.keys():
            self._take_kick(kicks[fd], ready[fd])
        if self._main.fileno() in ready:
            self._serve_main()

    def _take_kick(self, queue: Virtqueue, events: int) -> None:
        try:
            if not events & select.POLLIN or not os.read(queue.kick_fd, 8):
                raise OSError("it has no other end")
        except BlockingIOError:
            return  # somebody else has read it
        except OSError as error:
            self._log.refused(f"kick descriptor: {error}", queue=queue.index)
            queue.fail()
            return
        self._kicked.add(queue)

    # --- rings ------------------------------------------------------------------------

    def _serve_queue(self, queue: Virtqueue) -> None:
        """Answer one request of a ring: the front-end waits no longer than that takes."""
        self._kicked.discard(queue)  # first, as it may be stopped and kicked anew meanwhile
        try:
            if queue.running and self._serve_one(queue):
                self._kicked.add(queue)  # there may be more
                self._pace.hurry()
        except (RingError, OutsideMemoryError, NotBackedError) as error:
            self._log.refused(str(error), queue=queue.index)
            queue.fail()

    def _serve_one(self, queue: Virtqueue) -> bool:
        """Answer one request; False if there is none, or the ring was stopped meanwhile."""
        life = queue.life
        chain = queue.peek(self._memory)
        if chain is None:
            return False
        try:
            reply = self._session.answer(chain.read(self._memory), chain.capacity)
            if queue.life != life:
                return False  # it stays in the ring, and is done again when that goes on
            chain.write(self._memory, reply)
        except (NotBackedError, OutsideMemoryError) as error:
            reply = self._answer_fault(chain)
            self._log.refused(str(error), queue=queue.index)
        queue.push(self._memory, chain, len(reply))
        queue.notify()
        return True

    def _answer_fault(self, chain: Chain) -> bytes:
        """Write the answer to a request with a buffer that can't be reached; returns it.

        Raises OutsideMemoryError if it can't be answered: then the driver itself is at fault, and
        no task of the guest's that handed on a buffer of its own.
        """
        try:
            reply = fault(chain.start(self._memory, InHeader.width()))
            reply = reply if len(reply) <= chain.capacity else b""
            chain.write(self._memory, reply)
        except (NotBackedError, MalformedError):
            return b""
        return reply

    # --- the front-end ----------------------------------------------------------------

    def _ask(self, request: BackendRequest, where: vu.ShmemRange, fd: int | None) -> bool:
        """Send a request to the front-end and wait for its answer: was it done?

        Raises :class:`PeerError` if the front-end ends or talks nonsense.
        """
        if self._backend is None or not self._protocol_features & vu.P_SHMEM:
            self._log.refused("no back-end channel for the DAX window")
            return False
        fds = () if fd is None else (fd,)
        self._backend.send(request, where.encode(), vu.NEED_REPLY, fds)
        answer = self._await_answer(self._backend)
        answer.close()
        if answer.request != request or not answer.flags & vu.REPLY:
            raise PeerError(f"{answer.request} instead of an answer to {request.name}")
        try:
            return answer.number() == 0
        except MalformedError as error:
            raise PeerError(str(error)) from error

    def _await_answer(self, backend: vu.FrontEndChannel) -> Message:
        poll = _poll(self._main.fileno(), backend.fileno())
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._main.fileno() in ready:
                self._serve_main()
            if self._ended or self._backend is not backend:
                raise PeerError("the front-end ended while it mapped")
            if backend.fileno() in ready:
                answer = backend.receive()
                if answer is not None:
                    return answer
                if backend.ended:
                    raise PeerError("the front-end closed the back-end channel")

    def _serve_main(self) -> None:
        """Answer one request of the front-end."""
        message = self._main.receive()
        if message is None:
            self._ended = self._main.ended
            return
        try:
            reply = self._handle(message)
        except (MalformedError, OSError) as error:
            reply = self._refusal(message, error)
        finally:
            message.close()
        if reply is None and self._wants_ack(message):
            reply = vu.Number(0).encode()
        if reply is not None:
            self._main.send(message.request, reply)

    def _refusal(self, message: Message, error: Exception) -> bytes:
        """The reply to a request that can't be done.

        Raises :class:`PeerError` if its protocol has no such reply.
        """
        reason = f"{vu.name_of(message.request)}: {error}"
        if message.request in ANSWERED or not self._wants_ack(message):
            raise PeerError(reason) from error
        self._log.refused(reason)
        return vu.Number(1).encode()

    def _wants_ack(self, message: Message) -> bool:
        return bool(message.flags & vu.NEED_REPLY and self._protocol_features & vu.P_REPLY_ACK)

    def _handle(self, message: Message) -> bytes | None:
        if message.request in IGNORED:
            return None
        constant = self._constants.get(message.request)
        if constant is not None:
            return constant
        handler = HANDLERS.get(message.request)
        if handler is None:
            raise MalformedError("unknown request")
        return handler(self, message)

    def _queue(self, index: int) -> Virtqueue:
        if index >= QUEUES:
            raise MalformedError(f"queue {index} of {QUEUES}")
        return self._queues[index]

    def set_features(self, message: Message) -> None:
        """SET_FEATURES.

        QEMU asks every vhost device to log what it dirties when it measures the dirty rate, whether
        that was offered or not (hw/virtio/vhost.c, vhost_log_global_start). Ours does not: of a VM
        that has one, QEMU refuses the migration, for which alone its stores would have to be known.
        """
        if message.number() & ~(FEATURES | vu.F_LOG_ALL):
            raise MalformedError(f"features {message.number():#x} were not offered")

    def set_protocol_features(self, message: Message) -> None:
        """SET_PROTOCOL_FEATURES."""
        if message.number() & ~PROTOCOL_FEATURES:
            raise MalformedError(f"protocol features {message.number():#x} were not offered")
        self._protocol_features = message.number()
        self._log.event("features", protocol=message.number())

    def get_config(self, message: Message) -> bytes:
        """GET_CONFIG."""
        wanted = vu.ConfigRange.decode(message.payload)
        if wanted.offset + wanted.length > vu.MAX_CONFIG:
            raise MalformedError(f"{wanted.length} bytes of configuration at {wanted.offset}")
        part = self._config[wanted.offset : wanted.offset + wanted.length]
        return wanted.encode() + part.ljust(wanted.length, b"\0")

    def set_backend_req_fd(self, message: Message) -> None:
        """SET_BACKEND_REQ_FD: the socket for our own requests."""
        fd = message.only_fd()
        backend = vu.FrontEndChannel(socket.socket(fileno=fd))
        message.fds.clear()
        if self._backend is not None:
            self._backend.close()
        self._backend = backend

    def set_mem_table(self, message: Message) -> None:
        """SET_MEM_TABLE: all of the memory at once."""
        count = vu.MemoryTable.decode(message.payload).regions
        if count != len(message.fds):
            raise MalformedError(f"{count} regions with {len(message.fds)} file descriptors")
        start, step = vu.MemoryTable.width(), vu.MemoryRegion.width()
        regions = [
            vu.MemoryRegion.decode(message.payload, start + position * step)
            for position in range(count)
        ]
        for known in self._memory.regions():
            self._remove_memory(known)
        for region, fd in zip(regions, message.fds, strict=True):
            self._add_memory(region, fd)

    def add_mem_reg(self, message: Message) -> None:
        """ADD_MEM_REG: more memory, or what was just mapped in the DAX window."""
        region = vu.MemoryRegion.decode(message.payload, vu.MEM_REG_PADDING)
        self._add_memory(region, message.only_fd())

    def rem_mem_reg(self, message: Message) -> None:
        """REM_MEM_REG."""
        self._remove_memory(vu.MemoryRegion.decode(message.payload, vu.MEM_REG_PADDING))

    def _add_memory(self, region: vu.MemoryRegion, fd: int) -> None:
        reachable = self._memory.add(region, fd)
        st = os.fstat(fd)
        self._log.event(
            "memory",
            begins=region.key,
            guest=region.guest,
            len=region.length,
            offset=region.offset,
            st_dev=st.st_dev,
            st_ino=st.st_ino,
            reachable=reachable,
        )

    def _remove_memory(self, region: vu.MemoryRegion) -> None:
        self._memory.remove(region)
        where = {"guest": region.guest, "len": region.length}
        self._log.event("memory-gone", ends=region.key, **where)

    def set_vring_num(self, message: Message) -> None:
        """SET_VRING_NUM: its number of entries, a power of two (VIRTIO 1.2, 2.7)."""
        state = vu.VringState.decode(message.payload)
        if not 0 < state.value <= MAX_SIZE or state.value & (state.value - 1):
            raise MalformedError(f"a ring of {state.value} entries")
        self._queue(state.index).size = state.value

    def set_vring_addr(self, message: Message) -> None:
        """SET_VRING_ADDR: where it lies. Whether that is memory shows when it is used."""
        address = vu.VringAddress.decode(message.payload)
        if address.descriptors % 16 or address.available % 2 or address.used % 4:
            raise MalformedError("a ring that is not aligned")
        self._queue(address.index).address = address

    def set_vring_base(self, message: Message) -> None:
        """SET_VRING_BASE: the first entry to look at."""
        state = vu.VringState.decode(message.payload)
        self._queue(state.index).next = state.value & 0xFFFF

    def get_vring_base(self, message: Message) -> bytes:
        """GET_VRING_BASE: stop, and say where to go on."""
        index = vu.VringState.decode(message.payload).index
        queue = self._queue(index)
        self._kicked.discard(queue)
        self._log.event("ring-stopped", queue=index)
        return vu.VringState(index, queue.stop()).encode()

    def set_vring_enable(self, message: Message) -> None:
        """SET_VRING_ENABLE."""
        state = vu.VringState.decode(message.payload)
        queue = self._queue(state.index)
        queue.enabled = bool(state.value)
        self._look_at(queue)

    def set_vring_kick(self, message: Message) -> None:
        """SET_VRING_KICK: this starts the ring."""
        queue = self._set_event(message, "kick_fd")
        self._look_at(queue)

    def set_vring_call(self, message: Message) -> None:
        """SET_VRING_CALL."""
        self._set_event(message, "call_fd")

    def set_vring_err(self, message: Message) -> None:
        """SET_VRING_ERR."""
        self._set_event(message, "error_fd")

    def _set_event(self, message: Message, name: str) -> Virtqueue:
        number = message.number()
        queue = self._queue(number & vu.VRING_INDEX_MASK)
        queue.replace_fd(name, -1 if number & vu.VRING_NO_FD else message.take_fd())
        return queue

    def _look_at(self, queue: Virtqueue) -> None:
        """Requests may wait in a ring since before it was started."""
        if queue.running:
            self._kicked.add(queue)
            if self._settings.polls:
                with suppress(OutsideMemoryError):  # which is told when it is served
                    queue.spare_kicks(self._memory)
            self._log.event("ring-started", queue=queue.index)


def _poll(*fds: int) -> select.poll:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


def _constants(window: int) -> dict[int, bytes]:
    """The answers that are always the same."""
    sizes = [0] * vu.SHMEM_SLOTS
    sizes[SHMID] = window
    shmem = vu.ShmemConfig(1).encode() + struct.pack(f"={vu.SHMEM_SLOTS}Q", *sizes)
    return {
        Request.GET_FEATURES: vu.Number(FEATURES).encode(),
        Request.GET_PROTOCOL_FEATURES: vu.Number(PROTOCOL_FEATURES).encode(),
        Request.GET_QUEUE_NUM: vu.Number(QUEUES).encode(),
        Request.GET_MAX_MEM_SLOTS: vu.Number(MAX_REGIONS).encode(),
        Request.GET_SHMEM_CONFIG: shmem,
    }


Handler = Callable[[Device, Message], bytes | None]

HANDLERS: Mapping[int, Handler] = {
    Request.SET_FEATURES: Device.set_features,
    Request.SET_MEM_TABLE: Device.set_mem_table,
    Request.SET_VRING_NUM: Device.set_vring_num,
    Request.SET_VRING_ADDR: Device.set_vring_addr,
    Request.SET_VRING_BASE: Device.set_vring_base,
    Request.GET_VRING_BASE: Device.get_vring_base,
    Request.SET_VRING_KICK: Device.set_vring_kick,
    Request.SET_VRING_CALL: Device.set_vring_call,
    Request.SET_VRING_ERR: Device.set_vring_err,
    Request.SET_PROTOCOL_FEATURES: Device.set_protocol_features,
    Request.SET_VRING_ENABLE: Device.set_vring_enable,
    Request.SET_BACKEND_REQ_FD: Device.set_backend_req_fd,
    Request.GET_CONFIG: Device.get_config,
    Request.ADD_MEM_REG: Device.add_mem_reg,
    Request.REM_MEM_REG: Device.rem_mem_reg,
}

IGNORED = frozenset((Request.SET_OWNER, Request.RESET_OWNER, Request.SET_LOG_BASE))
"""Requests that need nothing done: the connection is the owner, and no store is logged."""

ANSWERED = frozenset((Request.GET_CONFIG, Request.GET_VRING_BASE))
"""Requests with an answer of their own, in which an error can't be told."""
