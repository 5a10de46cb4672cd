"""Backings: how host memory becomes guest memory. One file each, and one line in the registry."""

from hostfault.backing.base import (
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
from hostfault.backing.ram import Ram
from hostfault.backing.virtiofs_dax import VirtiofsDax
from hostfault.plumbing.registry import Registry

BACKINGS: Registry[Backing] = Registry("backing", (VirtiofsDax(), Ram()))

__all__ = [
    "BACKINGS",
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
