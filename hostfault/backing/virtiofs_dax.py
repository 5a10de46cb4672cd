"""virtiofs with a DAX window: guest memory is the page cache of a host file.

Released virtiofsd has no DAX and QEMU's own virtiofs device has no window, so the generic
vhost-user-test-device of QEMU 11.1 is given a back-end of our own (:mod:`hostfault.daxfs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hostfault.backing import foreign
from hostfault.backing.base import (
    BACK_END_CHILD,
    MEMFD,
    NUMBER,
    Ability,
    GuestView,
    Python,
    QemuOptions,
)
from hostfault.case.model import PAGE_SIZE, Page, Qemu
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import (
    HostfaultError,
    LaunchError,
    MissingCapabilityError,
    SetupError,
)
from hostfault.plumbing.process import run
from hostfault.remote.agent import Agent
from hostfault.remote.qmp import Recorder
from hostfault.remote.shell import Shell

TAG = "hostfault"
WINDOW = 64 << 20  # bytes of the DAX window
MOUNT_POINT = "/mnt"
SHARED = "shared"  # in the agent's directory
KEEP_FREE = 1 << 30  # bytes that it can't, where the share has no file system of its own
FILE = "data"
SOCKET = "daxfs.sock"
LOG = "daxfs.jsonl"
DEVICE = "vhost-user-test-device-pci"
OLDEST_QEMU = (11, 1)  # VIRTIO shared memory regions came to vhost-user with it
_NO_WINDOW = "dax can't be enabled"  # what the guest's kernel says then (fs/fuse/virtio_fs.c)
_START_PATIENCE = 30.0  # seconds for a QEMU that only prints something


@dataclass(frozen=True)
class VirtiofsDax:
    """A file of a shared directory, mapped into the guest by FUSE DAX.

    ``dax`` is the guest's mount option: "always", or "inode", by which the back-end says of each
    file whether it is to be mapped (Documentation/filesystems/dax.rst); ours says so of all.
    """

    name: str
    dax: str
    abilities = frozenset(Ability) - {Ability.POOL, Ability.DISK}
    guest_modules = ("virtiofs",)
    guest_programs = ()
    guest_options = ""
    logs: ClassVar[Mapping[str, str]] = {
        LOG: "the back-end: `map` and `unmap` of the file; `memory`: at which guest address; "
        "of one of `--virtiofsd`: what it printed"
    }

    def require(self, qemu: Qemu, environment: Mapping[str, str]) -> None:
        """The generic device that hands memory regions to any back-end, of QEMU 11.1 or newer."""
        if tuple(map(int, qemu.version.split("."))) < OLDEST_QEMU:
            raise MissingCapabilityError(
                "shared-memory-device",
                f"QEMU {qemu.version} ({qemu.argv[0]}) is too old for virtiofs DAX: use --qemu "
                f"image, or a QEMU of {'.'.join(map(str, OLDEST_QEMU))} or newer",
            )
        line = [*qemu.argv, "-device", "help"]
        known = run(line, what="QEMU", timeout=_START_PATIENCE, env=environment)
        if f'"{DEVICE}"' not in known:
            raise MissingCapabilityError(
                "shared-memory-device",
                f"QEMU {qemu.version} ({qemu.argv[0]}) was built without {DEVICE}: "
                f"use --qemu image",
            )

    def start(self, agent: Agent, directory: str, python: Python) -> None:
        """Start the daemon on the host; it listens before this returns.

        The share is a tmpfs of its own where the agent may mount one: a guest can fill that.

        On a host that TCG emulates the daemon polls, and no guest notifies it: that is a store to
        memory of the device, which ends guests there (see :func:`hostfault.guest.boot.command`),
        and QEMU refuses the device an I/O port for it, as its DAX window has that BAR.

        With ``python.instead`` another program serves: :mod:`hostfault.backing.foreign`.
        """
        agent.make_directory(SHARED)
        own = agent.mount(SHARED, python.share_size)
        if python.instead:
            foreign.start(agent, python, f"{directory}/{SOCKET}", f"{directory}/{SHARED}", TAG)
            return
        argv = [
            *python.argv,
            *("-m", "hostfault.daxfs", "--fd", "{fd}"),
            *("--shared", f"{directory}/{SHARED}", "--log", f"{directory}/{LOG}"),
            *("--window", str(WINDOW), "--tag", TAG),
            *("--keep-free", "0" if own else str(KEEP_FREE)),
        ]
        if python.on_tcg:
            argv.append("--poll")
        if python.user is not None:
            agent.give(SHARED, python.user)
            argv += ["--user", f"{python.user}:{python.user}"]
        agent.spawn(BACK_END_CHILD, argv, python.env, listen=f"{directory}/{SOCKET}")

    def qemu_options(self, directory: str, on_unbacked: str = "") -> QemuOptions:
        """The device; guest memory must be shared with the daemon."""
        if on_unbacked:
            raise MissingCapabilityError(
                "memory-backend", "its window into guest memory is no memory backend of QEMU's"
            )
        device = (
            *("-chardev", f"socket,id=daxfs,path={directory}/{SOCKET}"),
            "-device",
            f"{DEVICE},id=daxfs-device,virtio-id=26,num_vqs=2,vq_size=128,config_size=40,"
            "chardev=daxfs",
        )
        return QemuOptions(MEMFD.memory, device)

    def check_alive(self, agent: Agent) -> None:
        """Whether the daemon runs."""
        code = agent.ended(BACK_END_CHILD)
        if code is not None:
            raise LaunchError("the virtiofs-DAX back-end", [BACK_END_CHILD], code, _log(agent))

    def mount(self, agent: Agent, guest: Shell, deadline: Deadline) -> None:
        """Mount it in the guest, and check from inside that it is a DAX mount."""
        # One command, as each has a connection of its own, and to make one takes long.
        option = f"dax={self.dax}"
        mounted = f"mount -t virtiofs -o {option} {TAG} {MOUNT_POINT} && cat /proc/mounts"
        answer = guest.run(mounted, deadline)
        if answer.code != 0:
            words = guest.run("dmesg | tail -n 5", deadline).text
            if _NO_WINDOW in words:
                raise SetupError(
                    "the back-end has no DAX window: it maps no shared memory region by vhost-user "
                    f"(VHOST_USER_PROTOCOL_F_SHMEM), as far as QEMU sees. Its words:\n{_log(agent)}"
                )
            raise LaunchError(
                "mount of the virtiofs in the guest",
                ["mount"],
                answer.code,
                answer.text + words + _log(agent),
            )
        mounts = answer.text
        line = next((line for line in mounts.splitlines() if f" {MOUNT_POINT} " in line), "")
        if "virtiofs" not in line or option not in line:
            raise HostfaultError(f"the guest's mount is not a DAX mount: {line or mounts!r}")

    def make_page(self, agent: Agent, fill: Sequence[int | None]) -> Page:
        """A new file in the share."""
        path = f"{SHARED}/{FILE}"
        agent.make_file(path, fill, PAGE_SIZE)
        return Page(path, NUMBER * PAGE_SIZE, agent.file_system(path))

    def view(self) -> GuestView:
        """All of that file."""
        return GuestView(f"{MOUNT_POINT}/{FILE}", 0)

    def frame(self, agent: Agent, recorder: Recorder, page: Page, *, writes: bool) -> int:
        """From the daemon's log: where it mapped the page, and where QEMU says that this is.

        Of another program than ours only QEMU tells, and not whether the guest may write there:
        the probe has written by then, for an access that writes.
        """
        if not _is_ours(agent):
            return foreign.frame(agent, recorder, page)
        inode = agent.stat(page.path)["ino"]
        deadline = Deadline(20.0, f"the daemon to map inode {inode} at {page.offset:#x}")

        def look() -> int | None:
            text = agent.read(LOG, offset=-65536)[0]
            deadline.saw(text[-400:])
            return find_frame(text, inode, page.offset, writes)

        return poll(deadline, look, interval=0.02)

    def read_logs(self, agent: Agent) -> Mapping[str, str]:
        """The end of the daemon's log and of what it printed."""
        return {LOG: _log(agent)}


def _is_ours(agent: Agent) -> bool:
    """Whether our daemon serves: it writes its log from its beginning on."""
    return bool(agent.tails([LOG], 1)[0])


def _log(agent: Agent) -> str:
    return "".join(agent.tails([LOG, f"{BACK_END_CHILD}.log"], 8000))


def find_frame(log_text: str, inode: int, offset: int, writable: bool) -> int | None:
    """Where the daemon's log says that a page of a file is mapped now, as a guest frame.

    Two things must be logged: that QEMU acknowledged the mapping ("map"), and at which
    guest-physical address the file's memory is, which QEMU itself says ("memory": the request
    ADD_MEM_REG of QEMU's docs/interop/vhost-user.rst).
    """
    window: tuple[int, int] | None = None  # the part of the DAX window that holds the page
    frames: dict[int, int] = {}  # guest-physical address of a region -> frame of the page in it
    for record in _records(log_text):
        event, length = record.get("event"), record.get("len", 0)
        if record.get("lost") or event == "log-full":  # what was known may no longer hold
            window, frames = None, {}
        if event == "map" and _holds(record, inode, record.get("foffset", 0), offset):
            fit = record["writable"] >= writable
            window = (record["moffset"], record["moffset"] + length) if fit else None
        elif event == "unmap" and window and record["moffset"] < window[1]:
            window = window if record["moffset"] + length <= window[0] else None
        elif event == "memory" and _holds(record, inode, record.get("offset", 0), offset):
            frames[record["guest"]] = (record["guest"] + offset - record["offset"]) // PAGE_SIZE
        elif event == "memory-gone":
            frames.pop(record["guest"], None)
    return list(frames.values())[-1] if window and frames else None


def _holds(record: Mapping[str, Any], inode: int, begin: int, offset: int) -> bool:
    """Whether a record is of that inode, and the page inside its range of the file."""
    return record.get("st_ino") == inode and begin <= offset < begin + record.get("len", 0)


def _records(log_text: str) -> list[dict[str, Any]]:
    records = []
    for line in log_text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the first line of a tail may be cut
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
