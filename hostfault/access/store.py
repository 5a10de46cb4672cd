"""One store instruction of the task."""

from hostfault.access.base import Access

STORE = Access("store", writes=True, by_kernel=False, outcomes=frozenset({"value", "signal"}))
