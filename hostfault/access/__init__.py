"""Accesses: how a guest task touches the page. One file each, and one line in the registry."""

from hostfault.access.base import Access
from hostfault.access.load import LOAD
from hostfault.access.read import READ
from hostfault.access.store import STORE
from hostfault.access.write import WRITE
from hostfault.plumbing.registry import Registry

ACCESSES: Registry[Access] = Registry("access", (LOAD, STORE, READ, WRITE))

__all__ = ["ACCESSES", "Access"]
