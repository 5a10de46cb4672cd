"""One load of 16 bytes."""

from hostfault.access.base import Access

VECTOR = Access("vector", writes=False, by_kernel=False, outcomes=frozenset({"value", "signal"}))
