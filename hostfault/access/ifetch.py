"""The task calls a function in the page: the CPU fetches an instruction."""

from hostfault.access.base import Access

IFETCH = Access("ifetch", writes=False, by_kernel=False, outcomes=frozenset({"value", "signal"}))
