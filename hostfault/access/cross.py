"""One load of 16 bytes, half of them in the page before."""

from hostfault.access.base import Access

CROSS = Access("cross", writes=False, by_kernel=False, outcomes=frozenset({"value", "signal"}))
