"""read(2) into the page: the guest's kernel copies a system call's result into it."""

from hostfault.access.base import Access

RESULT = Access(
    "result", writes=True, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
