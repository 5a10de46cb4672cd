"""One REP MOVS of the task's that begins in the page before."""

from hostfault.access.base import Access

MOVS = Access("movs", writes=False, by_kernel=False, outcomes=frozenset({"value", "signal"}))
