"""Kernels: from a name, a path or a source tree to something that boots."""

from hostfault.case.model import Kernel
from hostfault.kernel.build import is_built, resolve_built
from hostfault.kernel.choose import Form, resolve_as
from hostfault.plumbing.cache import Cache

FORMS = [Form(syntax="NAME+SERIES or tree:PATH", claims=is_built, resolve=resolve_built)]
"""Ways of naming a kernel besides the catalogue's names and paths; the first that claims wins."""


def resolve(text: str, cache: Cache) -> Kernel:
    """The kernel that ``text`` names: see :func:`hostfault.kernel.choose.resolve_as`."""
    return resolve_as(text, cache, FORMS)


__all__ = ["FORMS", "Form", "resolve", "resolve_built"]
