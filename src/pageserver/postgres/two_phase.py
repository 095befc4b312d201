"""State files of prepared transactions, ``pg_twophase/<xid>`` (spec wal.md 5.2, 11; page-service.md 6.4).

The file on disk ends in a CRC-32C of all before it; the value we keep, as the PREPARE record, lacks it. The header
says the length with the CRC.

    0   u32 magic 57F94534    4   u32 total length, CRC included    ...    last 4 bytes: CRC
"""

from __future__ import annotations

import re
from typing import Final

from pageserver import _core
from pageserver.errors import CorruptDataError
from pageserver.postgres.versions import PostgresVersion

_CRC_SIZE: Final = 4
_NAME: Final = re.compile(r"[0-9A-Fa-f]{1,16}", re.ASCII)


class TwoPhaseFileError(CorruptDataError):
    """A file in ``pg_twophase`` is damaged. Carries ``name``."""

    def __init__(self, *, reason: str, name: str) -> None:
        super().__init__(f"two-phase file {name}: {reason}", name=name)


class TwoPhaseFileIncompleteError(TwoPhaseFileError):
    """The file is shorter than it says: it is damaged, or the server was writing it when it was copied."""


def twophase_file_name(xid: int, version: PostgresVersion) -> str:
    """Return 8 upper-case hexadecimal digits, or 16 from PostgreSQL 17 on."""
    return f"{xid:016X}" if version.has_full_xids else f"{xid:08X}"


def parse_twophase_file_name(name: str) -> int:
    """Return the transaction id. Raises: TwoPhaseFileError."""
    if _NAME.fullmatch(name) is None:
        raise TwoPhaseFileError(reason="its name is not a hexadecimal number", name=name)
    return int(name, 16)


def encode_twophase_file(value: bytes) -> bytes:
    """Return the file on disk for a stored value."""
    return value + _core.crc32c(value).to_bytes(_CRC_SIZE, "little")


def decode_twophase_file(content: bytes, name: str) -> bytes:
    """Return the value to store for a file on disk: the CRC is checked and cut off, if the file has one.

    Raises: TwoPhaseFileError.
    """
    total_length = int.from_bytes(content[4:8], "little")
    if len(content) < max(8 + _CRC_SIZE, total_length - _CRC_SIZE):
        reason = f"{len(content)} bytes where its header says {total_length}" if content else "it is empty"
        raise TwoPhaseFileIncompleteError(reason=reason, name=name)
    if total_length not in (len(content), len(content) + _CRC_SIZE):
        raise TwoPhaseFileError(reason=f"{len(content)} bytes where its header says {total_length}", name=name)
    if total_length == len(content) + _CRC_SIZE:
        return content
    value, stored = content[:-_CRC_SIZE], int.from_bytes(content[-_CRC_SIZE:], "little")
    if _core.crc32c(value) != stored:
        raise TwoPhaseFileError(reason="its CRC is wrong", name=name)
    return value
