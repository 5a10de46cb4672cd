"""sendfile(2): the guest's kernel loads from the page and hands it on to a pipe."""

from hostfault.access.base import Access

SENDFILE = Access(
    "sendfile",
    writes=False,
    by_kernel=True,
    outcomes=frozenset({"value", "end", "errno", "signal"}),
)
