"""Fields at fixed offsets of PostgreSQL's C structures, kept as the bytes they came in.

A structure is never taken apart and rebuilt: padding and fields of newer versions must survive a change of one field.
"""

from __future__ import annotations

import struct
from typing import Self, overload


class Field:
    """An integer (or bool) of a ``CStruct``: reading it decodes, ``CStruct.replaced`` changes it."""

    def __init__(self, offset: int, layout: str) -> None:
        self.offset = offset
        self.layout = struct.Struct(f"<{layout}")

    @overload
    def __get__(self, owner: None, kind: type[CStruct]) -> Self: ...
    @overload
    def __get__(self, owner: CStruct, kind: type[CStruct]) -> int: ...
    def __get__(self, owner: CStruct | None, kind: type[CStruct]) -> Self | int:
        if owner is None:
            return self
        (value,) = self.layout.unpack_from(owner.raw, self.offset)
        return int(value)


class CStruct:
    """Bytes with named fields; immutable."""

    __slots__ = ("raw",)

    raw: bytes

    def __init__(self, raw: bytes) -> None:
        object.__setattr__(self, "raw", bytes(raw))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable, use replaced({name}=...)")

    def replaced(self, **values: int) -> Self:
        """Return a copy with some fields changed. Raises: AttributeError (no such field), struct.error (does not
        fit).
        """
        changed = bytearray(self.raw)
        for name, value in values.items():
            field = getattr(type(self), name)
            if not isinstance(field, Field):
                raise AttributeError(f"{type(self).__name__} has no field {name}")
            field.layout.pack_into(changed, field.offset, value)
        return self._from_changed(bytes(changed))

    @classmethod
    def _from_changed(cls, raw: bytes) -> Self:
        return cls(raw)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, CStruct) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        names = [name for name in vars(type(self)) if isinstance(vars(type(self))[name], Field)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name):#x}' for name in names)})"
