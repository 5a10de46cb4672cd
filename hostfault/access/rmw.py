"""One locked instruction of the task that loads, compares and stores."""

from hostfault.access.base import Access

RMW = Access("rmw", writes=True, by_kernel=False, outcomes=frozenset({"value", "signal"}))
