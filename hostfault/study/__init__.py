"""The error-table study: many guest tasks touch pages that the host has cut off, all at once.

``plan -> run -> stats -> figures, write``; see docs/error-table.md for what came of it.
"""
