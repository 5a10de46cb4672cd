"""Kernels: from a name, a path or a source tree to something that boots."""

from hostfault.kernel.build import resolve_built  # also makes its forms known to resolve
from hostfault.kernel.choose import resolve

__all__ = ["resolve", "resolve_built"]
