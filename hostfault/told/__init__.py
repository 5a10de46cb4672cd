"""``ci/told``: what becomes of a task, and of its guest, where user space is told of the page.

It measures the cells of docs/told.md and writes that page's tables.
"""
