"""pread(2) of /proc/self/mem: the guest's kernel loads from the page by gup, as ptrace does."""

from hostfault.access.base import Access

PROCMEM = Access(
    "procmem", writes=False, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
