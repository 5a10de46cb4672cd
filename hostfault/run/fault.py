"""The fault: what is done to the backing file while the guest has the page mapped and touched."""

from __future__ import annotations

from hostfault.backing import virtiofs_dax
from hostfault.case.model import PAGE_SIZE, Access, Fault, Scenario
from hostfault.host.testbed import Place
from hostfault.plumbing.deadline import Deadline
from hostfault.plumbing.errors import HostfaultError
from hostfault.remote.agent import Agent

PAGES = 16  # length of the file
PAGE = 8  # the page that is touched: neither the first nor the last
FILE = "data"
SHARED_FILE = f"{virtiofs_dax.SHARED}/{FILE}"  # for the agent
STORED = 0x5A  # what a store writes; in no page's pattern


def pattern() -> list[int]:
    """The byte that fills each page of the file: never zero, no two alike."""
    return [0x80 + page for page in range(PAGES)]


def prepare(agent: Agent) -> None:
    """Make the file on the host."""
    agent.make_file(SHARED_FILE, pattern(), PAGE_SIZE)


def expected(scenario: Scenario) -> int | None:
    """The byte that the access must see or leave; None if the file will have no such page."""
    if scenario.fault is not Fault.NONE:
        return None
    return STORED if scenario.access is Access.STORE else pattern()[PAGE]


def inject(place: Place, scenario: Scenario) -> None:
    """Do it, and check that it is done."""
    if scenario.fault is Fault.NONE:
        return
    wanted = PAGE * PAGE_SIZE if scenario.fault is Fault.MIDDLE else 0
    if scenario.fault is Fault.GUEST:
        command = f"truncate -s {wanted} {virtiofs_dax.MOUNT_POINT}/{FILE}"
        place.guest.check(command, Deadline(20.0, "the guest to truncate"))
    else:
        place.agent.truncate(SHARED_FILE, wanted)
    size = place.agent.stat(SHARED_FILE)["size"]
    if size != wanted:
        raise HostfaultError(f"the host file has {size} bytes after the fault, not {wanted}")
