"""pwrite(2): the guest's kernel stores what the task gives it into the page."""

from hostfault.access.base import Access

WRITE = Access(
    "write", writes=True, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
