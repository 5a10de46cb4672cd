"""Frozen dataclasses that know their own layout in bytes.

Both protocols (vhost-user and FUSE) are C structures in the byte order of the machine, padded
by hand. A structure here is a dataclass whose field types name their width; fields follow each
other without gaps, so the padding of the C structure is written out as a field.
"""

from __future__ import annotations

import struct
import typing
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Self

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
I32 = Annotated[int, "i"]
U64 = Annotated[int, "Q"]
I64 = Annotated[int, "q"]
Pad7 = Annotated[bytes, "7s"]
Pad24 = Annotated[bytes, "24s"]
Pad28 = Annotated[bytes, "28s"]


class MalformedError(Exception):
    """Bytes that do not hold the structure that they should."""


@dataclass(frozen=True)
class Wire:
    """The base of all structures."""

    _known_layout: ClassVar[struct.Struct | None] = None

    @classmethod
    def _layout(cls) -> struct.Struct:
        known = cls.__dict__.get("_known_layout")
        if known is None:
            hints = typing.get_type_hints(cls, include_extras=True)
            codes = (hints[field.name].__metadata__[0] for field in fields(cls))
            known = cls._known_layout = struct.Struct("=" + "".join(codes))
        return typing.cast(struct.Struct, known)

    @classmethod
    def width(cls) -> int:
        """Its length in bytes."""
        return cls._layout().size

    @classmethod
    def decode(cls, data: bytes, at: int = 0) -> Self:
        """Read it from ``data`` at byte ``at``. Raises :class:`MalformedError` if that is short."""
        if len(data) - at < cls.width():
            raise MalformedError(f"{cls.__name__} needs {cls.width()} bytes, has {len(data) - at}")
        return cls(*cls._layout().unpack_from(data, at))

    def encode(self) -> bytes:
        """Its bytes."""
        return self._layout().pack(*vars(self).values())
