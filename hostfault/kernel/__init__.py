"""Kernels: from a name or a path to something that boots."""

from hostfault.kernel.choose import resolve

__all__ = ["resolve"]
