"""A device of the guest's loads from the page: a network card, by a vhost worker of the host's."""

from hostfault.access.base import Access

VHOST = Access(
    "vhost",
    writes=False,
    by_kernel=True,
    outcomes=frozenset({"value", "errno"}),
    device="wire",
)
