"""A device of the guest's stores to the page: a virtio-blk, for read(2) with O_DIRECT."""

from hostfault.access.base import Access

DMA = Access(
    "dma",
    writes=True,
    by_kernel=True,
    outcomes=frozenset({"value", "errno"}),
    device="disk",
)
