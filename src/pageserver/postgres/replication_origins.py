"""``pg_logical/replorigin_checkpoint``: how far replication from each origin has come (spec page-service.md 6.9).

u32 1257DADE | per origin: u16 id, 6 zero bytes, u64 remote LSN | CRC-32C of all before        (little-endian)
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from pageserver import _core
from pageserver.errors import CorruptDataError
from pageserver.lsn import Lsn

ORIGIN_CHECKPOINT_PATH: Final = "pg_logical/replorigin_checkpoint"
_MAGIC: Final = struct.pack("<I", 0x1257DADE)
_ENTRY: Final = struct.Struct("<H6xQ")


class OriginCheckpointError(CorruptDataError):
    """The file of replication origins is damaged."""


def encode_origin_checkpoint(origins: Mapping[int, Lsn]) -> bytes:
    """Return the file for origin id -> remote LSN."""
    body = _MAGIC + b"".join(_ENTRY.pack(origin_id, lsn) for origin_id, lsn in sorted(origins.items()))
    return body + _core.crc32c(body).to_bytes(4, "little")


def decode_origin_checkpoint(content: bytes) -> dict[int, Lsn]:
    """Return origin id -> remote LSN. Raises: OriginCheckpointError."""
    body, stored = content[:-4], content[-4:]
    entries = len(body) - len(_MAGIC)
    if body[:4] != _MAGIC or entries < 0 or entries % _ENTRY.size:
        raise OriginCheckpointError(f"{ORIGIN_CHECKPOINT_PATH} of {len(content)} bytes has no valid header or length")
    if _core.crc32c(body) != int.from_bytes(stored, "little"):
        raise OriginCheckpointError(f"{ORIGIN_CHECKPOINT_PATH} has a wrong CRC")
    return {origin_id: Lsn(lsn) for origin_id, lsn in _ENTRY.iter_unpack(body[4:])}
