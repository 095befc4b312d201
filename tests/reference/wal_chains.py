"""WAL read the slow way: segments to records, records to the chain of each block (spec wal.md 1, walredo.md 7.1).

Nothing here shares code with the decoder that it is compared with.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SEGMENT_SIZE = 16 * 1024 * 1024
PAGE_SIZE = 8192

HAS_IMAGE, HAS_DATA, WILL_INIT, SAME_REL = 0x10, 0x20, 0x40, 0x80

BlockId = tuple[int, int, int, int, int]
"""Tablespace, database, relation, fork, block."""


@dataclass(slots=True)
class Chain:
    """All records of one block since something made it anew, with their end LSNs."""

    records: list[tuple[int, bytes]] = field(default_factory=list)
    complete: bool = False
    """The first record makes the page, so no base image is needed."""


def read_records(wal: Path, tli: int, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (start LSN, end LSN, record) from the record at or after ``start`` until the WAL ends."""
    position = start
    stream = _Stream(wal, tli)
    while True:
        position = (position + 7) & ~7
        if position % PAGE_SIZE == 0:
            position += 40 if position % SEGMENT_SIZE == 0 else 24
        head = stream.read(position, 4)
        if head is None:
            return
        (length,) = struct.unpack("<I", head[0])
        if length < 24 or length > 1 << 30:
            return
        whole = stream.read(position, length)
        if whole is None:
            return
        record, end = whole
        end = (end + 7) & ~7
        yield position, end, record
        position = end


def first_record_after(wal: Path, tli: int, start: int) -> int:
    """Return the position of the first record that starts on or after the page of ``start``."""
    page = start - start % PAGE_SIZE
    data = _Stream(wal, tli).page(page)
    assert data is not None, f"no WAL at {start:X}"
    header = 40 if page % SEGMENT_SIZE == 0 else 24
    flags, remaining = struct.unpack("<H", data[2:4])[0], struct.unpack("<I", data[16:20])[0]
    return page + header + (((remaining + 7) & ~7) if flags & 1 else 0)


@dataclass(frozen=True, slots=True)
class BlockReference:
    """One block of a record: where, and whether the record makes the page anew."""

    block: BlockId
    makes_page: bool


def block_references(record: bytes, major: int) -> list[BlockReference]:
    """Return the blocks that a record refers to."""
    apply_bit = 0x04 if major == 14 else 0x02
    compressed = 0x02 if major == 14 else 0x1C
    found: list[BlockReference] = []
    at, left = 24, len(record) - 24
    rel: tuple[int, int, int] = (0, 0, 0)
    data_total = 0
    while left > data_total:
        identifier = record[at]
        if identifier == 0xFF:
            data_total += record[at + 1]
            at, left = at + 2, left - 2
            continue
        if identifier == 0xFE:
            data_total += struct.unpack_from("<I", record, at + 1)[0]
            at, left = at + 5, left - 5
            continue
        if identifier in (0xFD, 0xFC):
            size = 3 if identifier == 0xFD else 5
            at, left = at + size, left - size
            continue
        assert identifier <= 32, f"block id {identifier}"
        flags, length = struct.unpack_from("<BH", record, at + 1)
        start = at
        at += 4
        data_total += length
        makes_page = bool(flags & WILL_INIT)
        if flags & HAS_IMAGE:
            image_length, _, info = struct.unpack_from("<HHB", record, at)
            at += 5
            if info & compressed and info & 1:
                at += 2
            data_total += image_length
            makes_page = makes_page or bool(info & apply_bit)
        if not flags & SAME_REL:
            rel = struct.unpack_from("<III", record, at)
            at += 12
        (block,) = struct.unpack_from("<I", record, at)
        at += 4
        left -= at - start
        found.append(BlockReference((*rel, flags & 0x0F, block), makes_page))
    return found


def collect_chains(wal: Path, tli: int, start: int, major: int) -> dict[BlockId, Chain]:
    """Return the chain of every block that the WAL from ``start`` on mentions, cut where something makes the page anew.

    Chains of a relation that is truncated (SMGR TRUNCATE) are dropped: its blocks may not exist any more.
    """
    chains: defaultdict[BlockId, Chain] = defaultdict(Chain)
    for _, end, record in read_records(wal, tli, start):
        info, rmid = record[16], record[17]
        if rmid == 2 and info & 0xF0 == 0x20:
            _forget_truncated(chains, record)
            continue
        for reference in block_references(record, major):
            chain = chains[reference.block]
            if reference.makes_page:
                chain.records.clear()
                chain.complete = True
            chain.records.append((end, record))
    return chains


def _forget_truncated(chains: dict[BlockId, Chain], record: bytes) -> None:
    """SMGR TRUNCATE: block u32, spc, db, rel u32, flags u32 in the main data, short form behind the header."""
    _, spc, db, rel, _ = struct.unpack_from("<IIIII", record, 26)
    for block in [block for block in chains if block[:3] == (spc, db, rel)]:
        del chains[block]


class _Stream:
    """Bytes of the WAL without page headers."""

    def __init__(self, wal: Path, tli: int) -> None:
        self._wal = wal
        self._tli = tli
        self._number = -1
        self._segment: bytes | None = None

    def page(self, lsn: int) -> bytes | None:
        number, offset = divmod(lsn, SEGMENT_SIZE)
        if number != self._number:
            name = f"{self._tli:08X}{number >> 8:08X}{number & 0xFF:08X}"
            path = self._wal / name
            self._segment = path.read_bytes() if path.exists() else None
            self._number = number
        if self._segment is None:
            return None
        data = self._segment[offset : offset + PAGE_SIZE]
        # A recycled segment still carries its old pages.
        if struct.unpack_from("<Q", data, 8)[0] != lsn:
            return None
        return data

    def read(self, lsn: int, length: int) -> tuple[bytes, int] | None:
        """Return ``length`` bytes from ``lsn`` on and the position behind them; None if the WAL ends before."""
        out = bytearray()
        while True:
            offset = lsn % PAGE_SIZE
            page = self.page(lsn - offset)
            if page is None:
                return None
            part = page[offset : offset + length - len(out)]
            out += part
            lsn += len(part)
            if len(out) == length:
                return bytes(out), lsn
            lsn += 40 if lsn % SEGMENT_SIZE == 0 else 24
