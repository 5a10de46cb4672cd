"""One load instruction of a guest of the guest: the probe is its VMM."""

from hostfault.access.base import Access

NESTED = Access(
    "nested",
    writes=False,
    by_kernel=False,
    outcomes=frozenset({"value", "errno", "signal"}),
    nested=True,
)
