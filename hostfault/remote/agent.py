"""The harness's side of the agent that runs on the host (:mod:`hostfault.agent.server`)."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import (
    ConnectionLostError,
    HostfaultError,
    MissingCapabilityError,
    ProtocolError,
)
from hostfault.remote.shell import Stream

SLICE = 0.3  # seconds between two checks that the host still lives
# What moves megabytes, or makes a file system, may take so many times as long as a word.
WORK = frozenset(
    {
        *("drain_pool", "evict", "fill", "find_pages", "make_room", "mount_disk"),
        *("make_wire", "mount_huge_pages", "refill_pool", "swap_out"),
    }
)
TIMES = 6


class Agent:
    """Requests to the agent, one at a time.

    Every method raises :class:`ConnectionLostError` if the agent does not answer within
    ``timeout`` seconds (more for :data:`WORK`) or goes away, and :class:`HostfaultError` with its
    words if the operation failed there.
    """

    def __init__(
        self, stream: Stream, alive: Callable[[], None] = lambda: None, timeout: float = 10.0
    ) -> None:
        """``alive`` is asked during every wait, and raises if the host is known to be dead."""
        self._stream = stream
        self._alive = alive
        self._timeout = timeout
        self._buffer = b""
        self._asked = 0

    def close(self) -> None:
        """Hang up."""
        self._stream.close()

    def hello(self) -> Mapping[str, Any]:
        """Release of the host's kernel, and the agent's directory."""
        return dict(self._ask("hello"))

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        listen: str | None = None,
        *,
        changes_user: bool = False,
    ) -> int:
        """Start a program on the host; see the agent's own text. Returns its pid."""
        asked = {"name": name, "argv": list(argv), "env": dict(env), "listen": listen}
        return int(self._ask("spawn", **asked, changes_user=changes_user))

    def other_users(self, number: int) -> list[int]:
        """Users that nobody is on the host, for what a guest may break into.

        None of them where the agent may not become others.
        """
        return [int(user) for user in self._ask("other_users", number=number)]

    def give(self, path: str, user: int) -> None:
        """Give a directory to a user."""
        self._ask("give", path=path, user=user)

    def program_of(self, name: str, program: str) -> str:
        """The build id of the program that a child runs, in hex; "" if it has none."""
        return str(self._ask("program_of", name=name, program=program))

    def ended(self, name: str) -> int | None:
        """Exit code of a child, negative for a signal; None while it runs."""
        code = self._ask("ended", name=name)
        return None if code is None else int(code)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """End a child by a signal, without a warning; returns its code."""
        return int(self._ask("kill", name=name, number=int(number)))

    def kill_for_good(self, name: str) -> None:
        """End a child whose end is no trouble: nothing more is said of it."""
        self._ask("kill_for_good", name=name)

    def stop_child(self, name: str) -> str:
        """Stop a child; returns the state that it is in then (proc(5): "T")."""
        return str(self._ask("stop_child", name=name))

    def continue_child(self, name: str) -> None:
        """Undo :meth:`stop_child`."""
        self._ask("continue_child", name=name)

    def read(self, path: str, offset: int = 0, limit: int = 65536) -> tuple[str, int]:
        """Text of a file from ``offset`` (negative: from its end), and where to read on."""
        part = self._ask("read", path=path, offset=offset, limit=limit)
        return part["text"].encode("latin-1").decode(errors="replace"), int(part["next"])

    def mount(self, path: str, size: int, *, huge: bool = False) -> bool:
        """Mount a tmpfs of ``size`` bytes of the agent's own; False if it may not.

        ``huge``: it takes transparent huge pages where it can.
        """
        return bool(self._ask("mount", path=path, size=size, huge=huge))

    def mount_huge_pages(self, path: str, pages: int) -> None:
        """Have a pool of huge pages, of 2 MiB, and mount a hugetlbfs; see :meth:`may_hurt`."""
        self._ask("mount_huge_pages", path=path, pages=pages)

    def mount_disk(self, path: str, size: int) -> bool:
        """Mount ext4 on a loop device of the agent's; False without such devices.

        See :meth:`may_hurt`.
        """
        return bool(self._ask("mount_disk", path=path, size=size))

    def break_disk(self, path: str) -> None:
        """Let all reading of :meth:`mount_disk`'s disk fail with EIO; ``path`` is its mount's."""
        self._ask("break_disk", path=path)

    def mend_disk(self, path: str) -> None:
        """Undo :meth:`break_disk`; what was on it reads as zeroes."""
        self._ask("mend_disk", path=path)

    def swap_out(self, path: str, at: int, fill: int, length: int) -> bool:
        """Fill a range of a file on a tmpfs, and send it to swap space: to the disk "swap".

        False without loop devices. See :meth:`may_hurt`.
        """
        return bool(self._ask("swap_out", path=path, at=at, fill=fill, length=length))

    def evict(self, path: str, at: int, length: int) -> None:
        """Write a range of a file to its disk, and let the page cache forget it."""
        self._ask("evict", path=path, at=at, length=length)

    def limit(self, name: str, controller: str) -> bool:
        """Put a child into a cgroup without any room: of "memory", or of "hugetlb" pages.

        False for a kernel without that controller. See :meth:`may_hurt`.
        """
        return bool(self._ask("limit", name=name, controller=controller))

    def lift_limit(self) -> None:
        """Undo :meth:`limit`."""
        self._ask("lift_limit")

    def drain_pool(self) -> int:
        """Take the free huge pages from the pool; returns how many are still free."""
        return int(self._ask("drain_pool"))

    def refill_pool(self) -> None:
        """Undo :meth:`drain_pool`."""
        self._ask("refill_pool")

    def may_fill(self, path: str) -> bool:
        """Whether the file system of a file is one of :meth:`mount`'s."""
        return bool(self._ask("may_fill", path=path))

    def fill(self, path: str) -> None:
        """Fill the file system of a file to its last page; one of :meth:`mount`'s only."""
        self._ask("fill", path=path)

    def make_room(self, path: str) -> None:
        """Undo :meth:`fill`."""
        self._ask("make_room", path=path)

    def may_hurt(self) -> bool:
        """Whether the machine may be harmed: it is an emulated host, which ends with the case."""
        return bool(self._ask("may_hurt"))

    def punch(self, path: str, at: int, length: int) -> None:
        """Take a range out of a file; it reads as zeroes."""
        self._ask("punch", path=path, at=at, length=length)

    def poison(self, path: str, at: int) -> None:
        """Mark the page of a file at an offset as broken hardware; see :meth:`may_hurt`."""
        self._ask("poison", path=path, at=at)

    def soft_offline(self, path: str, at: int) -> tuple[int, int]:
        """Have the kernel take a page's frame out of use and move what it holds to another.

        Returns the machine's frame of the page before and after. See :meth:`may_hurt`.
        """
        before, after = self._ask("soft_offline", path=path, at=at)
        return int(before), int(after)

    def poison_mapping(self, name: str, address: int, length: int) -> bool:
        """Let a range of a child's memory, which has no page yet, be poisoned (UFFDIO_POISON).

        False if the kernel is too old for that. See :meth:`may_hurt`.
        """
        return bool(self._ask("poison_mapping", name=name, address=address, length=length))

    def forget_mapping(self, name: str, address: int, length: int) -> None:
        """Take a range out of a child's page tables (madvise(2), MADV_DONTNEED).

        Of a shared file the pages stay, a poison does not. See :meth:`may_hurt`.
        """
        self._ask("forget_mapping", name=name, address=address, length=length)

    def serve_mapping(self, name: str, address: int, length: int, manner: str) -> None:
        """Have a userfaultfd's server bring the missing pages of a range of a child's memory.

        ``manner``: it "answers" with zeroes, it "hangs" until :meth:`continue_servers`, or it
        "ends" at the first fault. See :meth:`may_hurt`.
        """
        asked = {"name": name, "address": address, "length": length, "manner": manner}
        self._ask("serve_mapping", **asked)

    def continue_servers(self) -> None:
        """Let servers of :meth:`serve_mapping` go on that hang."""
        self._ask("continue_servers")

    def change_name(self, path: str, how: str) -> int:
        """Rename, unlink or replace a file; returns the inode that has its name then, or 0."""
        return int(self._ask("change_name", path=path, how=how))

    def file_system(self, path: str) -> str:
        """The type of the file system that a file lies on which was made or adopted."""
        return str(self._ask("file_system", path=path))

    def open(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start a program on the host that one talks with. Returns its pid."""
        return int(self._ask("open", name=name, argv=list(argv), env=dict(env)))

    def say(self, name: str, data: bytes) -> None:
        """Write to the standard input of a program that was opened."""
        self._ask("say", name=name, text=data.decode("latin-1"))

    def hear(self, name: str, seconds: float) -> bytes | None:
        """What it has said, awaited for ``seconds`` at most; None once it has said its last."""
        said = self._ask("hear", name=name, seconds=seconds)
        return None if said is None else str(said).encode("latin-1")

    def hang_up(self, name: str) -> None:
        """End a program that was opened."""
        self._ask("hang_up", name=name)

    def mapped_at(self, name: str, address: int) -> tuple[str, int] | None:
        """File and offset that a child has mapped at an address of its own; None for no file."""
        found = self._ask("mapped_at", name=name, address=address)
        return None if found is None else (str(found[0]), int(found[1]))

    def huge_in(self, name: str, address: int) -> tuple[int, int]:
        """Bytes of a child's mapping at an address that have a page, and those of huge pages."""
        pages, huge = self._ask("huge_in", name=name, address=address)
        return int(pages), int(huge)

    def mappings(self, name: str, path: str) -> list[tuple[int, int, int]]:
        """Where a child has a file mapped that was made: address, length, offset of each range."""
        found = self._ask("mappings", name=name, path=path)
        return [(int(address), int(length), int(offset)) for address, length, offset in found]

    def listens(self, path: str) -> bool:
        """Whether somebody listens on the Unix socket at that path."""
        return bool(self._ask("listens", path=path))

    def adopt(self, path: str) -> None:
        """Act from now on, too, on a file that a child has made."""
        self._ask("adopt", path=path)

    def adopt_descriptor(self, name: str, link: str, path: str) -> None:
        """Act on an open file of a child's under the name ``path``; ``link`` is as in proc(5)."""
        self._ask("adopt_descriptor", name=name, link=link, path=path)

    def peek(self, name: str, address: int) -> int | None:
        """One byte of a child's memory; None where there is none to be had."""
        value = self._ask("peek", name=name, address=address)
        return None if value is None else int(value)

    def find_pages(self, path: str, text: str, number: int) -> int:
        """Where in a file ``number`` pages in a row are this text, all of each; an offset."""
        return int(self._ask("find_pages", path=path, text=text, number=number))

    def write_pages(self, path: str, at: int, fill: Sequence[int | None], page_size: int) -> None:
        """Fill pages from offset ``at`` on; None punches a hole."""
        self._ask("write_pages", path=path, at=at, fill=list(fill), page_size=page_size)

    def allocate(self, path: str, at: int, length: int) -> None:
        """Give a range of a file its pages, as zeroes where there were none."""
        self._ask("allocate", path=path, at=at, length=length)

    def make_file(self, path: str, fill: Sequence[int | None], page_size: int) -> None:
        """Write a file in which page N is full of the byte ``fill[N]``; None is a hole."""
        self._ask("make_file", path=path, fill=list(fill), page_size=page_size)

    def make_directory(self, path: str) -> None:
        """Make a directory."""
        self._ask("make_directory", path=path)

    def write(self, path: str, text: str) -> None:
        """Write a file; what it held is gone."""
        self._ask("write", path=path, text=text)

    def truncate(self, path: str, size: int) -> int:
        """Cut a file; returns the size that it then has."""
        return int(self._ask("truncate", path=path, size=size))

    def stat(self, path: str) -> Mapping[str, int]:
        """Device ("dev"), inode ("ino") and size of a file."""
        return dict(self._ask("stat", path=path))

    def byte(self, path: str, offset: int) -> int | None:
        """One byte of a file; None beyond its end, or in a page that cannot be read."""
        value = self._ask("byte", path=path, offset=offset)
        return None if value is None else int(value)

    def trace(self, *, anew: bool = True) -> list[str]:
        """Begin to count KVM's tracepoints; returns those that the kernel has.

        With ``anew`` false, counts that have begun go on.
        """
        return list(self._ask("trace", anew=anew))

    def reads_kernel_log(self) -> bool:
        """Whether :meth:`kernel_log` can tell anything."""
        return bool(self._ask("reads_kernel_log"))

    def counted_by(self) -> tuple[str, str]:
        """How tracepoints are counted ("tracefs", "perf", or "" for not), and if not, why."""
        how, why = self._ask("counted_by")
        return str(how), str(why)

    def count_touches(self, address: int, length: int) -> bool:
        """Count, too, page faults that the host's kernel itself takes in that range of user memory.

        :meth:`sample` has them as "touches". False where they cannot be counted.
        """
        return bool(self._ask("count_touches", address=address, length=length))

    def make_wire(self) -> bool:
        """Make a network to a guest: a tap, and somebody who sends back what comes to its port 7.

        False for a kernel without tun or vhost_net. See :meth:`may_hurt`.
        """
        return bool(self._ask("make_wire"))

    def histogram(self, event: str) -> list[tuple[dict[str, int], int]]:
        """Counts of one tracepoint since :meth:`trace`: (keys, count) for each set of keys."""
        return [(dict(keys), int(count)) for keys, count in self._ask("histogram", event=event)]

    def sample(
        self,
        name: str,
        tails: Sequence[str],
        watched: int | None = None,
        address: int | None = None,
        place: tuple[int, int] = (0, (1 << 64) - 1),
    ) -> Mapping[str, Any]:
        """Counts since :meth:`trace`, CPU time of a QEMU's vCPUs, its exit code, ends of logs.

        The counts of the frame ``watched`` are always among them; ``place`` are the first and the
        last instruction that may be the access. ``backed`` tells whether QEMU's
        own memory at ``address`` can be read, ``unanswered`` how many page faults wait for a server
        of :meth:`serve_mapping`.
        """
        asked = {
            "name": name,
            "tails": list(tails),
            "watched": watched,
            "address": address,
            "place": list(place),
        }
        return dict(self._ask("sample", **asked))

    def stacks(self, name: str) -> tuple[str, ...]:
        """Where each vCPU thread of a QEMU is in the host's kernel; nothing if we may not know."""
        return tuple(map(str, self._ask("stacks", name=name)))

    def tails(self, paths: Sequence[str], limit: int) -> list[str]:
        """The ends of several files, of ``limit`` bytes each; empty for one that is not there."""
        texts = self._ask("tails", paths=list(paths), limit=limit)
        return [(text or "").encode("latin-1").decode(errors="replace") for text in texts]

    def kernel_log(self) -> str:
        """What the host's kernel has logged since :meth:`trace`."""
        return str(self._ask("kernel_log"))

    def _ask(self, op: str, **fields: Any) -> Any:
        self._asked += 1
        request = {"id": self._asked, "op": op, **fields}
        patience = self._timeout * (TIMES if op in WORK else 1)
        deadline = Deadline(patience, f"the host's agent to answer {op}")
        try:
            self._stream.settimeout(SLICE)
            self._stream.sendall(json.dumps(request).encode() + b"\n")
            reply = self._reply(deadline)
            while reply.get("id") != self._asked:  # late, to a question that was given up
                reply = self._reply(deadline)
        except OSError as error:
            raise ConnectionLostError(f"the host's agent did not answer {op}: {error}") from error
        except ValueError as error:
            raise ProtocolError(f"what the agent answered to {op} is no reply: {error}") from error
        if "error" in reply:
            raise HostfaultError(f"{op} failed on the host: {reply['error']}")
        return reply["ok"]

    def _reply(self, deadline: Deadline) -> dict[str, Any]:
        reply = json.loads(self._line(deadline))
        if not isinstance(reply, dict):
            raise ValueError(f"{reply!r:.80}")
        return reply

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._buffer:
            if deadline.passed():
                raise ConnectionLostError(str(deadline.error()))
            try:
                data = self._stream.recv(65536)
            except TimeoutError:
                self._alive()
            else:
                if not data:
                    raise ConnectionLostError(f"the agent hung up: {deadline.waiting_for}")
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def require_expendable(agent: Agent, why: str) -> None:
    """Raise :class:`MissingCapabilityError` with the reason where the machine may not be harmed."""
    if not agent.may_hurt():
        raise MissingCapabilityError("emulated-host", f"{why}: use --host emulated")
