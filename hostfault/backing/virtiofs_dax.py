"""virtiofs with a DAX window: guest memory is the page cache of a host file.

Released virtiofsd has no DAX and QEMU's own virtiofs device has no window, so the generic
vhost-user-test-device of QEMU 11.1 is given a back-end of our own
(:mod:`hostfault.hostside.daxfs`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostfault.deadline import Deadline, poll
from hostfault.errors import HostfaultError, LaunchError
from hostfault.host.agent import Agent
from hostfault.model import PAGE_SIZE
from hostfault.qmp import Recorder
from hostfault.ssh import Shell

NAME = "virtiofs-dax"
TAG = "hostfault"
WINDOW = 64 << 20  # bytes of the DAX window
MOUNT_POINT = "/mnt"
SHARED = "shared"  # in the agent's directory
SOCKET = "daxfs.sock"
LOG = "daxfs.jsonl"
CHILD = "daxfs"


@dataclass(frozen=True)
class PageMapping:
    """Where the daemon mapped a page of a file."""

    window_offset: int  # bytes from the start of the DAX window
    writable: bool


def start(agent: Agent, directory: str, python: Sequence[str], env: Mapping[str, str]) -> None:
    """Start the daemon on the host; it listens before this returns."""
    agent.make_directory(SHARED)
    argv = [
        *python,
        *("-m", "hostfault.hostside.daxfs", "--fd", "{fd}"),
        *("--shared", f"{directory}/{SHARED}", "--log", f"{directory}/{LOG}"),
        *("--window", str(WINDOW), "--tag", TAG),
    ]
    agent.spawn(CHILD, argv, env, listen=f"{directory}/{SOCKET}")


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
    return agent.read(LOG, offset=-8000)[0] + agent.read(f"{CHILD}.log", offset=-4000)[0]


def wait_for_mapping(agent: Agent, path: str, offset: int, writable: bool) -> PageMapping:
    """The daemon's mapping of the page at ``offset`` of a file of the shared directory.

    Raises :class:`~hostfault.errors.DeadlineError` if it never made one: then the guest does
    not touch the host's page, and a fault would prove nothing.
    """
    inode = agent.stat(f"{SHARED}/{path}")["ino"]
    deadline = Deadline(20.0, f"the daemon to map inode {inode} at {offset:#x}")

    def look() -> PageMapping | None:
        text = agent.read(LOG, offset=-65536)[0]
        deadline.saw(text[-400:])
        found = find_mapping(text, inode, offset)
        return found if found and found.writable >= writable else None

    return poll(deadline, look)


def find_mapping(log_text: str, inode: int, offset: int) -> PageMapping | None:
    """What the daemon's log says of a page: its mapping, or None if it is not mapped (now)."""
    found: PageMapping | None = None
    where = (0, 0)
    for record in _records(log_text):
        begin = record.get("moffset", 0)
        if record.get("event") == "map" and record.get("st_ino") == inode:
            inside = offset - record["foffset"]
            if 0 <= inside < record["len"]:
                found = PageMapping(begin + inside, bool(record["writable"]))
                where = (begin, begin + record["len"])
        elif record.get("event") == "unmap":
            begins_before, ends_after = begin < where[1], where[0] < begin + record.get("len", 0)
            found = None if begins_before and ends_after else found
    return found


def window_base(recorder: Recorder) -> int:
    """Guest-physical address of the DAX window, as QEMU knows it (HMP ``info mtree -f``)."""
    return parse_window_base(recorder.monitor("info mtree -f"))


def parse_window_base(mtree: str) -> int:
    """Find the window's first mapped part in the flat memory view, less its offset in it."""
    match = re.search(
        r"^\s*([0-9a-f]{16})-[0-9a-f]{16} .*(?:shm|vhost-user).*$", mtree, re.MULTILINE
    )
    if match is None:
        raise HostfaultError("QEMU's memory map shows no DAX window")
    return int(match[1], 16)


def gfn(base: int, mapping: PageMapping) -> int:
    """Guest frame number of a mapped page."""
    return (base + mapping.window_offset) // PAGE_SIZE


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
