"""pread(2): the guest's kernel loads from the page and copies to a buffer of the task's."""

from hostfault.access.base import Access

READ = Access(
    "read", writes=False, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
