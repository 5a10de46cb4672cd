"""``ci/matrix`` and ``ci/ab``: the cells of a set on several kernels, side by side.

They start pytest, as a person would, and read what a run leaves.
"""
