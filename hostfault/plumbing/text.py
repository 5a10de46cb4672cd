"""Text that a guest or a kernel under test may have written, made harmless for its readers."""

from __future__ import annotations

import re

# A terminal obeys control characters; a CI system obeys lines that begin with its commands.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_COMMAND = re.compile(r"^(\s*)(::|##\[|##vso\[)", re.MULTILINE)


def harmless(text: str) -> str:
    """The same text with control characters spelt out, and no line that a CI system obeys.

    (GitHub: "Workflow commands", ``::name::``; Azure Pipelines: "Logging commands", ``##vso[``.)
    """
    spelt = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
    return _COMMAND.sub(r"\1\\\2", spelt)
