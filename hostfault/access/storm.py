"""One load of the task, amid loads of the same page by four others, from the first touch on."""

from hostfault.access.base import Access

STORM = Access(
    "storm",
    writes=False,
    by_kernel=False,
    outcomes=frozenset({"value", "signal"}),
    amid_others=True,
)
