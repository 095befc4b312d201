"""Log sequence numbers: positions in PostgreSQL's write-ahead log (spec keyspace.md 10.1, wal.md 1.1 and 1.6).

An ``Lsn`` is an ``int``, so it crosses into the Rust core and into comparisons without a conversion; only its text
differs.
"""

from __future__ import annotations

import re
from typing import Final

from pageserver.errors import RequestError

WAL_SEGMENT_SIZE: Final = 16 * 1024 * 1024
"""Bytes of a WAL segment file; other sizes are not supported."""
WAL_PAGE_SIZE: Final = 8192
"""Bytes of a WAL page (XLOG_BLCKSZ)."""
SHORT_HEADER_SIZE: Final = 24
"""Bytes of the header of a WAL page that is not the first of its segment."""
LONG_HEADER_SIZE: Final = 40
"""Bytes of the header of the first page of a WAL segment."""

_TEXT: Final = re.compile(r"\s*([0-9A-Fa-f]+)/([0-9A-Fa-f]+)\s*", re.ASCII)
_HEX: Final = re.compile(r"[0-9A-Fa-f]+", re.ASCII)
_U32_MAX: Final = 0xFFFF_FFFF
_U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF


class LsnParseError(RequestError):
    """The text is not an LSN. Carries ``text``."""

    def __init__(self, *, text: str) -> None:
        super().__init__(f"LsnParseError: invalid lsn {text!r}", hint="an lsn looks like 0/16B3748", text=text)


class Lsn(int):
    """A position in the log. 0 is invalid, 2^64 - 1 means "latest".

    Adding an integer gives an ``Lsn``; subtracting gives a plain ``int`` (a distance).
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Lsn:
        if not 0 <= value <= _U64_MAX:
            raise ValueError(f"lsn {value:#x} does not fit 64 bits")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``X/Y``. Surrounding white space and leading zeros are fine. Raises: LsnParseError."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise LsnParseError(text=text)
        high, low = int(match[1], 16), int(match[2], 16)
        if high > _U32_MAX or low > _U32_MAX:
            raise LsnParseError(text=text)
        return cls(high << 32 | low)

    @classmethod
    def from_hex(cls, text: str) -> Lsn:
        """Read the form of layer names: hexadecimal digits whose value fits 64 bits. Raises: LsnParseError."""
        if _HEX.fullmatch(text) is None or (value := int(text, 16)) > _U64_MAX:
            raise LsnParseError(text=text)
        return cls(value)

    def to_hex(self) -> str:
        """Return the form of layer names: 16 upper-case hexadecimal digits."""
        return f"{int(self):016X}"

    def __str__(self) -> str:
        return f"{int(self) >> 32:X}/{int(self) & _U32_MAX:X}"

    def __repr__(self) -> str:
        return f"Lsn({self})"

    def __add__(self, distance: int) -> Lsn:
        return Lsn(int(self) + int(distance))

    def is_valid(self) -> bool:
        """Return whether this is a position at all (not 0)."""
        return self != 0

    def is_aligned(self) -> bool:
        """Return whether a WAL record may start here, page headers aside."""
        return self % 8 == 0

    def aligned(self) -> Lsn:
        """Return this position rounded up to the 8-byte alignment of WAL records."""
        return Lsn(int(self) + 7 & ~7)

    def normalised(self) -> Lsn:
        """Return where the bytes of a record begun here really start: behind a page header, else aligned (wal.md
        1.6).
        """
        if self % WAL_SEGMENT_SIZE == 0:
            return self + LONG_HEADER_SIZE
        if self % WAL_PAGE_SIZE == 0:
            return self + SHORT_HEADER_SIZE
        return self.aligned()

    def page_start(self) -> Lsn:
        """Return the position of byte 0 of the WAL page that holds this position."""
        return Lsn(int(self) - int(self) % WAL_PAGE_SIZE)

    def segment_start(self) -> Lsn:
        """Return the position of byte 0 of the WAL segment that holds this position."""
        return Lsn(int(self) - int(self) % WAL_SEGMENT_SIZE)

    def segment_number(self) -> int:
        """Return the number of the WAL segment that holds this position."""
        return int(self) // WAL_SEGMENT_SIZE


INVALID_LSN: Final = Lsn(0)
MAX_LSN: Final = Lsn(_U64_MAX)
"""Means "the latest" where a request may say so."""
