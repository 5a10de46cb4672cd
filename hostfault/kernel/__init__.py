"""Kernels: from a name or a path to something that boots."""
