"""Accesses: how a guest task touches the page. One file each, and one line in the registry."""

from hostfault.access.argument import ARGUMENT
from hostfault.access.base import Access
from hostfault.access.coredump import COREDUMP
from hostfault.access.cross import CROSS
from hostfault.access.dma import DMA
from hostfault.access.futex import FUTEX
from hostfault.access.ifetch import IFETCH
from hostfault.access.load import LOAD
from hostfault.access.movs import MOVS
from hostfault.access.nested import NESTED
from hostfault.access.procmem import PROCMEM
from hostfault.access.read import READ
from hostfault.access.result import RESULT
from hostfault.access.rmw import RMW
from hostfault.access.sendfile import SENDFILE
from hostfault.access.sigframe import SIGFRAME
from hostfault.access.store import STORE
from hostfault.access.storm import STORM
from hostfault.access.uring import URING
from hostfault.access.vector import VECTOR
from hostfault.access.vhost import VHOST
from hostfault.access.write import WRITE
from hostfault.plumbing.registry import Registry

ACCESSES: Registry[Access] = Registry(
    "access",
    (
        LOAD,
        STORE,
        READ,
        WRITE,
        VECTOR,
        CROSS,
        MOVS,
        RMW,
        IFETCH,
        SIGFRAME,
        FUTEX,
        ARGUMENT,
        RESULT,
        SENDFILE,
        PROCMEM,
        COREDUMP,
        DMA,
        VHOST,
        NESTED,
        STORM,
        URING,
    ),
)

__all__ = ["ACCESSES", "Access"]
