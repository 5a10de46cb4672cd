"""IORING_OP_READ: the guest's kernel loads from the page for an io_uring."""

from hostfault.access.base import Access

URING = Access(
    "uring", writes=False, by_kernel=True, outcomes=frozenset({"value", "end", "errno", "signal"})
)
