"""What a machine may lack, by the names that ``--require`` takes."""

from __future__ import annotations

import ast
from pathlib import Path

import hostfault
from hostfault.case.capabilities import CAPABILITIES

PACKAGE = Path(hostfault.__file__).parent


def named() -> set[str]:
    """The capabilities that some code says are missing."""
    calls = (
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingCapabilityError"
    )
    return {ast.literal_eval(call.args[0]) for call in calls}


def test_each_capability_that_is_missed_somewhere_can_be_required_and_no_other() -> None:
    assert named() == set(CAPABILITIES)
