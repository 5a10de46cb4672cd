"""futex(2): the guest's kernel changes a futex in the page."""

from hostfault.access.base import Access

FUTEX = Access(
    "futex", writes=True, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
