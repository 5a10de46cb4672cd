"""Backings: how host memory becomes guest memory. One file each, and one line in the registry."""

from hostfault.backing.base import (
    BACK_END_CHILD,
    GUEST_MEMORY,
    NUMBER,
    PAGES,
    QEMU_CHILD,
    Ability,
    Backing,
    GuestView,
    Python,
    QemuOptions,
)
from hostfault.backing.devdax import DevDax
from hostfault.backing.ivshmem import Ivshmem
from hostfault.backing.nvdimm import Nvdimm
from hostfault.backing.ram import Ram
from hostfault.backing.store import (
    FOLDER,
    PMEM,
    DiskFile,
    HugeFile,
    Memfd,
    TmpfsFile,
    TransparentHugeFile,
)
from hostfault.backing.virtio_pmem import XFS, VirtioPmem
from hostfault.backing.virtiofs_dax import VirtiofsDax
from hostfault.plumbing.registry import Registry

BACKINGS: Registry[Backing] = Registry(
    "backing",
    (
        VirtiofsDax("virtiofs-dax", "always"),
        VirtiofsDax("virtiofs-dax-inode", "inode"),
        Ram("ram", TmpfsFile()),
        Ram("ram-private", TmpfsFile(private=True)),
        Ram("ram-memfd", Memfd()),
        Ram("ram-hugetlb", HugeFile()),
        Ram("ram-thp", TransparentHugeFile()),
        Ram("ram-ext4", DiskFile()),
        Ivshmem("ivshmem", TmpfsFile()),
        VirtioPmem("virtio-pmem", TmpfsFile(size=PMEM)),
        VirtioPmem("virtio-pmem-xfs", TmpfsFile(size=PMEM), XFS),
        Nvdimm("nvdimm", TmpfsFile(size=PMEM)),
        DevDax("devdax", TmpfsFile(size=PMEM)),
    ),
)

__all__ = [
    "BACKINGS",
    "BACK_END_CHILD",
    "FOLDER",
    "GUEST_MEMORY",
    "NUMBER",
    "PAGES",
    "QEMU_CHILD",
    "Ability",
    "Backing",
    "GuestView",
    "Python",
    "QemuOptions",
]
