"""Timeline metadata in its old form: 512 numbers inside the index (remote-storage.md 5.5). Read only, never written.

0  crc32c u32      over bytes 8 .. size
4  size u16, format u16 (4, or 3 without pg_version)
8  disk_consistent_lsn u64
   prev_record_lsn option u64, ancestor_timeline option 16 bytes (an option is a tag byte, then the value)
   ancestor_lsn u64, latest_gc_cutoff_lsn u64, initdb_lsn u64, pg_version u32, zeros to 512; all big-endian
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

METADATA_SIZE = 512
_CASTAGNOLI = 0x82F63B78


@dataclass(frozen=True, slots=True)
class LegacyMetadata:
    """The fields as they are stored."""

    disk_consistent_lsn: int
    prev_record_lsn: int | None
    ancestor_timeline: bytes | None
    ancestor_lsn: int
    latest_gc_cutoff_lsn: int
    initdb_lsn: int
    pg_version: int


def decode_metadata_array(numbers: list[object]) -> LegacyMetadata:
    """Decode the array. Raises ValueError with the reference's texts."""
    if len(numbers) != METADATA_SIZE:
        raise ValueError("metadata bytes size is wrong")
    content = bytes(number for number in numbers if isinstance(number, int))
    if len(content) != METADATA_SIZE:
        raise ValueError("metadata bytes size is wrong")
    checksum, size, form = struct.unpack_from(">IHH", content)
    if not 8 <= size <= METADATA_SIZE:
        raise ValueError("corrupted metadata file")
    if form not in (3, 4):
        raise ValueError(f"unsupported metadata format version {form}")
    if crc32c(content[8:size]) != checksum:
        raise ValueError("metadata checksum mismatch")
    reader = _Reader(content[:size])
    disk_consistent_lsn = reader.number()
    if form == 4 and disk_consistent_lsn % 8:
        raise ValueError("disk_consistent_lsn is not aligned")
    return LegacyMetadata(
        disk_consistent_lsn=disk_consistent_lsn,
        prev_record_lsn=reader.number() if reader.tag() else None,
        ancestor_timeline=reader.take(16) if reader.tag() else None,
        ancestor_lsn=reader.number(),
        latest_gc_cutoff_lsn=reader.number(),
        initdb_lsn=reader.number(),
        pg_version=int.from_bytes(reader.take(4), "big") if form == 4 else 14,
    )


def crc32c(content: bytes) -> int:
    """Return CRC-32C of a few hundred bytes; bit by bit is fast enough for an object that no release writes any
    more.
    """
    crc = 0xFFFF_FFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.offset = 8

    def take(self, count: int) -> bytes:
        piece = self.content[self.offset : self.offset + count]
        if len(piece) != count:
            raise ValueError("corrupted metadata file")
        self.offset += count
        return piece

    def number(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def tag(self) -> bool:
        return self.take(1) != b"\0"
