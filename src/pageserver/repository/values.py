"""Encoded values, as far as the object repository looks into them (layer-files.md 10).

image     u32 0, u64 length, the bytes             needs nothing older
record    u32 1, u32 variant, …                    variant 0 (PostgreSQL's): u8 will_init, u64 length, the bytes
"""

from __future__ import annotations

import struct

from pageserver import _core
from pageserver.errors import CorruptDataError, MissingKeyError
from pageserver.repository.object_store import TimelineRecord

_IMAGE_HEADER = struct.Struct(">IQ")
_IMAGE_START = bytes(4)
_POSTGRES_START = b"\0\0\0\1\0\0\0\0"
_WILL_INIT_AT = 8


def encode_image(image: bytes) -> bytes:
    return _IMAGE_HEADER.pack(0, len(image)) + image


def is_base(value: bytes) -> bool:
    """Return whether a value alone makes its page: an image, or a record that initialises it."""
    if value.startswith(_IMAGE_START):
        return True
    return value.startswith(_POSTGRES_START) and value[_WILL_INIT_AT : _WILL_INIT_AT + 1] == b"\1"


def make_page(
    key: bytes,
    lsn: int,
    newest_first: list[tuple[int, bytes]],
    *,
    record: TimelineRecord,
    redo: _core.RedoPool | None,
) -> bytes:
    """Return the value of `key` as of `lsn` from (LSN, encoded value) down to one that `is_base`, or to the oldest.

    Raises: MissingKeyError (nothing was found), CorruptDataError (a value does not decode or does not fit to the page),
    UnavailableError (a record needs the redo process, and there is none).
    """
    if not newest_first:
        raise MissingKeyError(key=key, lsn=lsn)
    newest_lsn, newest = newest_first[0]
    if newest.startswith(_IMAGE_START):
        image = newest[_IMAGE_HEADER.size :]
        if len(newest) < _IMAGE_HEADER.size or _IMAGE_HEADER.unpack_from(newest)[1] != len(image):
            raise CorruptDataError("stored image has another length than it says", key=key.hex(), lsn=newest_lsn)
        return image
    return _core.redo_page(
        key=key,
        lsn=lsn,
        pg_version=record.pg_version,
        flavour=record.flavour,
        hint_bits_logged=record.hint_bits_logged,
        values=newest_first,
        redo=redo,
    )
