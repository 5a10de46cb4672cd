"""Faults: how a host loses a page. One file each, and one line in the registry."""

from hostfault.fault.back_end import BackEndDead, BackEndFrozen
from hostfault.fault.base import Fault, Scene, require
from hostfault.fault.eio import DiskError
from hostfault.fault.full import Full
from hostfault.fault.guest import GuestTruncation
from hostfault.fault.hugetlb_empty import HugetlbEmpty
from hostfault.fault.hwpoison import HardwarePoison, SoftOffline
from hostfault.fault.limit import HugePageLimit, MemoryLimit
from hostfault.fault.names import NameChange
from hostfault.fault.none import NoFault
from hostfault.fault.partial import PartialTruncation
from hostfault.fault.punch import Punch, Starved
from hostfault.fault.regrown import Regrown
from hostfault.fault.swapin_error import SwapInError
from hostfault.fault.truncate import Truncation
from hostfault.fault.userfault import UserfaultPoison, UserfaultServer
from hostfault.plumbing.registry import Registry

FAULTS: Registry[Fault] = Registry(
    "fault",
    (
        NoFault(),
        Truncation("zero", keep=False),
        Truncation("middle", keep=True),
        GuestTruncation(),
        Full(),
        PartialTruncation(),
        Regrown(),
        Punch(),
        Starved(),
        HardwarePoison(),
        SoftOffline(),
        UserfaultPoison(),
        UserfaultServer("uffd-served", "answers"),
        UserfaultServer("uffd-dead", "hangs"),
        UserfaultServer("uffd-gone", "ends"),
        HugetlbEmpty(),
        HugePageLimit(),
        MemoryLimit(),
        DiskError(),
        SwapInError(),
        NameChange("rename"),
        NameChange("unlink"),
        NameChange("replace"),
        BackEndDead(),
        BackEndFrozen(),
    ),
)

__all__ = ["FAULTS", "Fault", "Scene", "require"]
