"""A signal handler's stack: the guest's kernel puts its frame into the page."""

from hostfault.access.base import Access

SIGFRAME = Access(
    "sigframe", writes=True, by_kernel=True, outcomes=frozenset({"value", "errno", "signal"})
)
