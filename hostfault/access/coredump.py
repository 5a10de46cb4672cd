"""A task dumps core: the guest's kernel loads from the page by gup, for the core file."""

from hostfault.access.base import Access

COREDUMP = Access(
    "coredump",
    writes=False,
    by_kernel=True,
    outcomes=frozenset({"value", "hole", "end", "errno", "signal"}),
)
