"""One load instruction of the task."""

from hostfault.access.base import Access

LOAD = Access("load", writes=False, by_kernel=False, outcomes=frozenset({"value", "signal"}))
