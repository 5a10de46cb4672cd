"""Conditions: under what a case runs. One file each, and one line in the registry."""

from hostfault.condition.base import Condition, Plain
from hostfault.condition.dirty_log import DirtyLog
from hostfault.condition.placed import Placed
from hostfault.plumbing.registry import Registry

CONDITIONS: Registry[Condition] = Registry(
    "condition",
    (
        Plain(),
        DirtyLog(),
        Placed("pinned"),
        Placed("migrating"),
    ),
)

__all__ = ["CONDITIONS", "Condition"]
