"""Aux files: small files of a compute that live in the sparse keyspace (spec keyspace.md 6; stock.md 2).

A key is ``62``, two bytes of directory class and the low 13 bytes of a hash of the path, in the 16-byte compact form.
Hashes may collide, so a value is a list of (full path, content). No files at all is the zero-length value, which is
the tombstone.

    value   01, then per file: u32 path length, path, u32 content length, content     (big-endian)

We add one use of our own: ``pg_tblspc/<oid>`` holds the location of a user tablespace, versioned like everything else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from pageserver.errors import CorruptDataError
from pageserver.keyspace.key import Key

AUX_VALUE_VERSION: Final = 1
TABLESPACE_PREFIX: Final = "pg_tblspc/"

_FNV_OFFSET: Final = 0x6C62272E07BB014262B821756295C58D
_FNV_PRIME: Final = 0x0000000001000000000000000000013B
_MASK_128: Final = (1 << 128) - 1
_MASK_104: Final = (1 << 104) - 1

_PREFIX_CLASSES: Final = (
    ("pg_logical/mappings/", 0x0101),
    ("pg_logical/snapshots/", 0x0102),
    ("pg_logical/", 0x01FF),
    ("pg_replslot/", 0x0201),
    ("pg_stat/", 0x0301),
)
_REPLORIGIN_CHECKPOINT: Final = "pg_logical/replorigin_checkpoint"
_REPLORIGIN_CLASS: Final = 0x0103
_OTHER_CLASS: Final = 0xFFFF


class AuxFileDecodeError(CorruptDataError):
    """The value of an aux key does not decode; ``reason`` says why."""

    def __init__(self, *, reason: str) -> None:
        super().__init__(f"invalid aux file value: {reason}", reason=reason)


def fnv1a_128(data: bytes) -> int:
    """Return the 128-bit FNV-1a hash."""
    state = _FNV_OFFSET
    for byte in data:
        state = (state ^ byte) * _FNV_PRIME & _MASK_128
    return state


def aux_file_key(path: str) -> Key:
    """Return the key of a path. A path must never move to another class: its old value would become unreachable."""
    directory_class, hashed = _classify(path)
    compact = 0x62 << 120 | directory_class << 104 | fnv1a_128(hashed.encode()) & _MASK_104
    return Key.from_compact(compact)


def _classify(path: str) -> tuple[int, str]:
    if path == _REPLORIGIN_CHECKPOINT:
        return _REPLORIGIN_CLASS, ""
    for prefix, directory_class in _PREFIX_CLASSES:
        if path.startswith(prefix):
            return directory_class, path.removeprefix(prefix)
    return _OTHER_CLASS, path


def decode_aux_files(value: bytes) -> list[tuple[str, bytes]]:
    """Return the files of one key. Raises: AuxFileDecodeError."""
    if not value:
        return []
    if value[0] != AUX_VALUE_VERSION:
        raise AuxFileDecodeError(reason=f"version {value[0]:#04x} where {AUX_VALUE_VERSION:#04x} is needed")
    files, at = [], 1
    while at < len(value):
        raw_path, at = _take(value, at)
        content, at = _take(value, at)
        try:
            path = raw_path.decode()
        except UnicodeDecodeError as error:
            raise AuxFileDecodeError(reason=f"path {raw_path[:64]!r} is not UTF-8") from error
        files.append((path, content))
    return files


def _take(value: bytes, at: int) -> tuple[bytes, int]:
    if at + 4 > len(value):
        raise AuxFileDecodeError(reason=f"a length at {at} goes beyond the end at {len(value)}")
    (size,) = struct.unpack_from(">I", value, at)
    end = at + 4 + size
    if end > len(value):
        raise AuxFileDecodeError(reason=f"{size} bytes at {at + 4} go beyond the end at {len(value)}")
    return value[at + 4 : end], end


def encode_aux_files(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Shape: zero bytes if there are no files."""
    parts = [bytes((AUX_VALUE_VERSION,))]
    for path, content in files:
        raw_path = path.encode()
        parts += (struct.pack(">I", len(raw_path)), raw_path, struct.pack(">I", len(content)), content)
    return b"".join(parts) if len(parts) > 1 else b""


def update_aux_value(value: bytes | None, path: str, content: bytes) -> tuple[bytes, bool]:
    """Put a file into the value of its key, or delete it if ``content`` is empty (keyspace.md 6.4).

    Returns the new value and whether the path was there before; a deletion of what was not there is the caller's to
    log.
    Raises: AuxFileDecodeError (the value is damaged, or names the path twice).
    """
    files = decode_aux_files(value or b"")
    kept = [(other, data) for other, data in files if other != path]
    if len(files) - len(kept) > 1:
        raise AuxFileDecodeError(reason=f"path {path!r} occurs {len(files) - len(kept)} times")
    existed = len(kept) < len(files)
    if content:
        kept.append((path, content))
    return encode_aux_files(kept), existed


def tablespace_path(oid: int) -> str:
    """Return the path of the aux file that holds a user tablespace's location."""
    return f"{TABLESPACE_PREFIX}{oid}"


def tablespaces_of(files: Mapping[str, bytes]) -> dict[int, str]:
    """Return oid -> location from all aux files. Raises: AuxFileDecodeError."""
    tablespaces = {}
    for path, content in files.items():
        if not path.startswith(TABLESPACE_PREFIX):
            continue
        oid = path.removeprefix(TABLESPACE_PREFIX)
        if not (oid.isascii() and oid.isdigit()):
            raise AuxFileDecodeError(reason=f"path {path!r} does not name a tablespace")
        tablespaces[int(oid)] = content.decode(errors="surrogateescape")
    return tablespaces
