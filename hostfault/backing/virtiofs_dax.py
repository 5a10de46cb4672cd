"""virtiofs with a DAX window: guest memory is the page cache of a host file.

Released virtiofsd has no DAX and QEMU's own virtiofs device has no window, so the generic
vhost-user-test-device of QEMU 11.1 is given a back-end of our own
(:mod:`hostfault.daxfs`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hostfault.case.model import PAGE_SIZE
from hostfault.plumbing.deadline import Deadline, poll
from hostfault.plumbing.errors import HostfaultError, LaunchError
from hostfault.remote.agent import Agent
from hostfault.remote.ssh import Shell

NAME = "virtiofs-dax"
TAG = "hostfault"
WINDOW = 64 << 20  # bytes of the DAX window
MOUNT_POINT = "/mnt"
SHARED = "shared"  # in the agent's directory
SOCKET = "daxfs.sock"
LOG = "daxfs.jsonl"
CHILD = "daxfs"


def start(agent: Agent, directory: str, python: Sequence[str], env: Mapping[str, str]) -> None:
    """Start the daemon on the host; it listens before this returns."""
    agent.make_directory(SHARED)
    argv = [
        *python,
        *("-m", "hostfault.daxfs", "--fd", "{fd}"),
        *("--shared", f"{directory}/{SHARED}", "--log", f"{directory}/{LOG}"),
        *("--window", str(WINDOW), "--tag", TAG),
    ]
    agent.spawn(CHILD, argv, env, listen=f"{directory}/{SOCKET}")


def check_alive(agent: Agent) -> None:
    """Raise :class:`LaunchError` if the daemon has ended while it was needed."""
    code = agent.ended(CHILD)
    if code is not None:
        raise LaunchError("the virtiofs-DAX back-end", [CHILD], code, log(agent))


def device(directory: str) -> list[str]:
    """What QEMU's command line needs for it; guest memory must be shared."""
    return [
        *("-chardev", f"socket,id=daxfs,path={directory}/{SOCKET}"),
        "-device",
        "vhost-user-test-device-pci,id=daxfs-device,virtio-id=26,num_vqs=2,vq_size=128,"
        "config_size=40,chardev=daxfs",
    ]


def mount(agent: Agent, guest: Shell, deadline: Deadline) -> None:
    """Mount it in the guest, and check from inside that it is a DAX mount."""
    answer = guest.run(f"mount -t virtiofs -o dax=always {TAG} {MOUNT_POINT}", deadline)
    if answer.code != 0:
        raise LaunchError(
            "mount of the virtiofs in the guest", ["mount"], answer.code, answer.text + log(agent)
        )
    mounts = guest.check("cat /proc/mounts", deadline)
    line = next((line for line in mounts.splitlines() if f" {MOUNT_POINT} " in line), "")
    if "virtiofs" not in line or "dax=always" not in line:
        raise HostfaultError(f"the guest's mount is not a DAX mount: {line or mounts!r}")


def log(agent: Agent) -> str:
    """The end of the daemon's log and of what it printed."""
    printed = agent.read(f"{CHILD}.log", offset=-4000)[0]
    try:
        return agent.read(LOG, offset=-8000)[0] + printed
    except HostfaultError:  # it ended before it made its log
        return printed


def wait_for_mapping(agent: Agent, path: str, offset: int, writable: bool) -> int:
    """The guest frame (gfn) at which the page at ``offset`` of a shared file is mapped.

    Raises :class:`~hostfault.plumbing.errors.DeadlineError` if the daemon never mapped it: then the
    guest does not touch the host's page, and a fault would prove nothing.
    """
    inode = agent.stat(f"{SHARED}/{path}")["ino"]
    deadline = Deadline(20.0, f"the daemon to map inode {inode} at {offset:#x}")

    def look() -> int | None:
        text = agent.read(LOG, offset=-65536)[0]
        deadline.saw(text[-400:])
        return find_frame(text, inode, offset, writable)

    return poll(deadline, look)


def find_frame(log_text: str, inode: int, offset: int, writable: bool) -> int | None:
    """Where the daemon's log says that a page of a file is mapped now, as a guest frame.

    Two things must be told: that QEMU acknowledged the mapping ("map"), and at which
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
