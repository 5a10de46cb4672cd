"""write(2) from the page: the guest's kernel copies a system call's argument out of it."""

from hostfault.access.base import Access

ARGUMENT = Access(
    "argument", writes=False, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
