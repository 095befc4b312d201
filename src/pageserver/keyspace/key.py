"""The 18-byte key and what its fields mean (spec keyspace.md 2-4).

    offset  0       1         5         9         13      14
            field1  field2    field3    field4    field5  field6
            u8      u32 BE    u32 BE    u32 BE    u8      u32 BE

A ``Key`` *is* its 18 bytes (a ``bytes``), so it crosses into the Rust core without a conversion, and the order of
bytes is the order of keys. Ranges are half-open.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pageserver.errors import InternalError, RequestError

KEY_SIZE: Final = 18
SIZE_BLOCK: Final = 0xFFFF_FFFF
"""The block number under which the size of a relation fork or SLRU segment is stored."""
PAGE_SIZE: Final = 8192
"""Bytes of a block (BLCKSZ)."""
RELATION_SEGMENT_BLOCKS: Final = 131_072
"""Blocks of one segment file of a relation (1 GiB)."""
SLRU_SEGMENT_BLOCKS: Final = 32

DEFAULT_TABLESPACE: Final = 1663
GLOBAL_TABLESPACE: Final = 1664

MAIN_FORK: Final = 0
FSM_FORK: Final = 1
VM_FORK: Final = 2
INIT_FORK: Final = 3
FORK_NAMES: Final = {MAIN_FORK: "", FSM_FORK: "fsm", VM_FORK: "vm", INIT_FORK: "init"}
_FORK_NUMBERS: Final = {name: number for number, name in FORK_NAMES.items()}

AUX_FILE_PREFIX: Final = 0x62
ORIGIN_PREFIX: Final = 0x63
RELDIR_V2_PREFIX: Final = 0x65
SPARSE_START: Final = 0x60
SPARSE_END: Final = 0x7F

_LAYOUT: Final = struct.Struct(">BIIIBI")
_HEX: Final = re.compile(r"[0-9A-Fa-f]{36}", re.ASCII)
_U32: Final = 0xFFFF_FFFF


class KeyParseError(RequestError):
    """The text or bytes are not a key. Carries ``text``."""

    def __init__(self, *, text: str) -> None:
        super().__init__(f"parse error: invalid key {text!r}", hint="a key is 36 hexadecimal digits", text=text)


class InvalidKeyError(RequestError):
    """The key does not fit the 16-byte compact form (keyspace.md 2.4)."""

    def __init__(self, *, key: Key) -> None:
        super().__init__(f"invalid key {key}: it has no compact form", key=key)


class RelTagParseError(RequestError):
    """The text does not name a fork of a relation. Carries ``text``."""

    def __init__(self, *, text: str) -> None:
        super().__init__(f"invalid relation {text!r}", hint="it looks like 1663/5/16384 or 1663/5/16384_vm", text=text)


class SlruKind(IntEnum):
    """The directories of simple LRU pages that are kept."""

    CLOG = 0
    MULTIXACT_MEMBERS = 1
    MULTIXACT_OFFSETS = 2

    @property
    def directory(self) -> str:
        """Return the directory's path below the data directory."""
        return ("pg_xact", "pg_multixact/members", "pg_multixact/offsets")[self]


@dataclass(frozen=True, slots=True, order=True)
class RelTag:
    """One fork of one relation. Order: tablespace, database, relation, fork."""

    spcnode: int
    dbnode: int
    relnode: int
    forknum: int = MAIN_FORK

    @classmethod
    def parse(cls, text: str) -> RelTag:
        """Read ``spc/db/rel``, then optionally ``_`` (or ``.``) and a fork name or number. Raises: RelTagParseError."""
        base, separator, fork = text.partition("_") if "_" in text else text.partition(".")
        numbers = base.split("/")
        if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
            raise RelTagParseError(text=text)
        if not separator:
            forknum = MAIN_FORK
        elif fork in _FORK_NUMBERS and fork:
            forknum = _FORK_NUMBERS[fork]
        elif fork.isascii() and fork.isdigit() and int(fork) <= 0xFF:
            forknum = int(fork)
        else:
            raise RelTagParseError(text=text)
        spcnode, dbnode, relnode = (int(number) for number in numbers)
        if max(spcnode, dbnode, relnode) > _U32:
            raise RelTagParseError(text=text)
        return cls(spcnode, dbnode, relnode, forknum)

    @classmethod
    def from_bytes(cls, raw: bytes) -> RelTag:
        """Read the 13-byte form: fork, tablespace, database, relation, big-endian. Raises: RelTagParseError."""
        if len(raw) != 13:
            raise RelTagParseError(text=raw.hex())
        forknum, spcnode, dbnode, relnode = struct.unpack(">BIII", raw)
        return cls(spcnode, dbnode, relnode, forknum)

    def with_fork(self, forknum: int) -> RelTag:
        return RelTag(self.spcnode, self.dbnode, self.relnode, forknum)

    def __bytes__(self) -> bytes:
        return struct.pack(">BIII", self.forknum, self.spcnode, self.dbnode, self.relnode)

    def __str__(self) -> str:
        base = f"{self.spcnode}/{self.dbnode}/{self.relnode}"
        if self.forknum == MAIN_FORK:
            return base
        return f"{base}_{FORK_NAMES.get(self.forknum, 'UNKNOWN FORKNUM')}"


class Key(bytes):
    """Address of one value. Made with ``Key.of`` or one of the constructors by kind; ``Key(raw)`` checks the length."""

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Key:
        if len(raw) != KEY_SIZE:
            raise KeyParseError(text=bytes(raw).hex())
        return super().__new__(cls, raw)

    @classmethod
    def of(
        cls, field1: int, field2: int = 0, field3: int = 0, field4: int = 0, field5: int = 0, field6: int = 0
    ) -> Key:
        return cls(_LAYOUT.pack(field1, field2, field3, field4, field5, field6))

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read 36 hexadecimal digits of either case. Raises: KeyParseError."""
        if _HEX.fullmatch(text) is None:
            raise KeyParseError(text=text)
        return cls(bytes.fromhex(text))

    # What each kind of value is stored under (keyspace.md 4).

    @classmethod
    def database_directory(cls) -> Key:
        return cls.of(0)

    @classmethod
    def relmap(cls, spcnode: int, dbnode: int) -> Key:
        return cls.of(0, spcnode, dbnode)

    @classmethod
    def relation_directory(cls, spcnode: int, dbnode: int) -> Key:
        return cls.of(0, spcnode, dbnode, 0, 0, 1)

    @classmethod
    def relation_block(cls, rel: RelTag, block: int) -> Key:
        return cls.of(0, rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, block)

    @classmethod
    def relation_size(cls, rel: RelTag) -> Key:
        return cls.relation_block(rel, SIZE_BLOCK)

    @classmethod
    def slru_directory(cls, kind: SlruKind) -> Key:
        return cls.of(1, kind)

    @classmethod
    def slru_block(cls, kind: SlruKind, segno: int, block: int) -> Key:
        return cls.of(1, kind, 1, segno, 0, block)

    @classmethod
    def slru_segment_size(cls, kind: SlruKind, segno: int) -> Key:
        return cls.slru_block(kind, segno, SIZE_BLOCK)

    @classmethod
    def twophase_directory(cls) -> Key:
        return cls.of(2)

    @classmethod
    def twophase_file(cls, xid: int) -> Key:
        """Return the key of a prepared transaction's file; ``xid`` has up to 64 bits."""
        return cls.of(2, 0, 0, xid >> 40, xid >> 32 & 0xFF, xid & _U32)

    @classmethod
    def control_file(cls) -> Key:
        return cls.of(3)

    @classmethod
    def checkpoint(cls) -> Key:
        return cls.of(3, 0, 0, 0, 0, 1)

    @classmethod
    def aux_files_v1(cls) -> Key:
        """Return the legacy key that is neither read nor written."""
        return cls.of(3, 0, 0, 0, 0, 2)

    @classmethod
    def replication_origin(cls, origin_id: int) -> Key:
        return cls.of(ORIGIN_PREFIX, 0, 0, 0, 0, origin_id)

    @classmethod
    def relation_directory_v2(cls, rel: RelTag) -> Key:
        return cls.of(RELDIR_V2_PREFIX, rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, 1)

    # Fields

    @property
    def fields(self) -> tuple[int, int, int, int, int, int]:
        return _LAYOUT.unpack(self)

    @property
    def field1(self) -> int:
        return self[0]

    @property
    def field2(self) -> int:
        return int.from_bytes(self[1:5], "big")

    @property
    def field3(self) -> int:
        return int.from_bytes(self[5:9], "big")

    @property
    def field4(self) -> int:
        return int.from_bytes(self[9:13], "big")

    @property
    def field5(self) -> int:
        return self[13]

    @property
    def field6(self) -> int:
        return int.from_bytes(self[14:18], "big")

    # Arithmetic and the compact form

    def add(self, count: int) -> Key:
        """Return this key as an 18-byte number plus ``count``."""
        value = int.from_bytes(self, "big") + count
        if value >> 8 * KEY_SIZE:
            raise InternalError(f"key {self} + {count} is beyond the last key")
        return Key(value.to_bytes(KEY_SIZE, "big"))

    def next(self) -> Key:
        return self.add(1)

    def is_compactable(self) -> bool:
        """Return whether the compact form can hold this key; not asked on stock timelines (stock.md 2)."""
        field2 = self.field2
        return field2 <= 0xFFFF or field2 in (0xFFFF_FFFF, 0x2222_2222)

    def to_compact(self) -> int:
        """Return the 16-byte form as a number; lossy in field2. Raises: InvalidKeyError."""
        if not self.is_compactable():
            raise InvalidKeyError(key=self)
        return (self[0] & 0x7F) << 120 | int.from_bytes(self[3:], "big")

    @classmethod
    def from_compact(cls, value: int) -> Key:
        raw = value.to_bytes(16, "big")
        return cls(bytes((raw[0] & 0x7F, 0, 0)) + raw[1:])

    # Predicates (keyspace.md 4.1); behaviour elsewhere rests on them, so they are exact.

    def is_relation_block(self) -> bool:
        return self[0] == 0 and self.field4 != 0 and self.field6 != SIZE_BLOCK

    def is_relation_size(self) -> bool:
        return self[0] == 0 and self.field6 == SIZE_BLOCK

    def is_relation_directory(self) -> bool:
        field1, field2, field3, field4, field5, field6 = self.fields
        return field1 == 0 and field2 != 0 and field3 != 0 and (field4, field5, field6) == (0, 0, 1)

    def is_fsm_block(self) -> bool:
        return self.is_relation_block() and self[13] == FSM_FORK

    def is_vm_block(self) -> bool:
        return self.is_relation_block() and self[13] == VM_FORK

    def is_slru_block(self) -> bool:
        return self[0] == 1 and self.field3 == 1 and self.field6 != SIZE_BLOCK

    def is_slru_segment_size(self) -> bool:
        field1, field2, field3, _, field5, field6 = self.fields
        return field1 == 1 and field2 < 3 and field3 == 1 and field5 == 0 and field6 == SIZE_BLOCK

    def is_slru_directory(self) -> bool:
        return self[0] == 1 and not any(self.fields[2:])

    def is_aux_file(self) -> bool:
        return self[0] == AUX_FILE_PREFIX

    def is_sparse(self) -> bool:
        return SPARSE_START <= self[0] < SPARSE_END

    def is_data(self) -> bool:
        """Return whether this is a relation or SLRU block; every other key holds metadata in the wide sense."""
        return self.is_relation_block() or self.is_slru_block()

    def is_inherited(self) -> bool:
        """Return whether a branch sees this key in its ancestor: not aux files, not origins (keyspace.md 4.3)."""
        return self[0] not in (AUX_FILE_PREFIX, ORIGIN_PREFIX) and self != Key.aux_files_v1()

    def relation(self) -> RelTag:
        """Return the fork of a relation block, relation size or relation directory v2 key."""
        _, spcnode, dbnode, relnode, forknum, _ = self.fields
        return RelTag(spcnode, dbnode, relnode, forknum)

    def __str__(self) -> str:
        return self.hex().upper()

    def __repr__(self) -> str:
        return f"Key({self})"


MIN_KEY: Final = Key(bytes(KEY_SIZE))
MAX_KEY: Final = Key(b"\xff" * KEY_SIZE)
"""Only ever an exclusive end."""


@dataclass(frozen=True, slots=True, order=True)
class KeyRange:
    """Keys from ``start`` up to but excluding ``end``."""

    start: Key
    end: Key

    @classmethod
    def single(cls, key: Key) -> KeyRange:
        return cls(key, key.next())

    def is_empty(self) -> bool:
        return self.start >= self.end

    def is_single_key(self) -> bool:
        return self.start != MAX_KEY and self.start.next() == self.end

    def overlaps(self, other: KeyRange) -> bool:
        return max(self.start, other.start) < min(self.end, other.end)

    def __contains__(self, key: bytes) -> bool:
        return self.start <= key < self.end

    def __str__(self) -> str:
        return f"{self.start}..{self.end}"


# Useful ranges (keyspace.md 4.2)

SPARSE_RANGE: Final = KeyRange(Key.of(SPARSE_START), Key.of(SPARSE_END))
AUX_FILE_RANGE: Final = KeyRange(Key.of(AUX_FILE_PREFIX), Key.of(AUX_FILE_PREFIX + 1))
ORIGIN_RANGE: Final = KeyRange(Key.of(ORIGIN_PREFIX), Key.of(ORIGIN_PREFIX, 0, 0, 0, 0, 0x10000))
RELDIR_V2_RANGE: Final = KeyRange(Key.of(RELDIR_V2_PREFIX), Key.of(RELDIR_V2_PREFIX + 1))
NOT_INHERITED_SPARSE_RANGE: Final = KeyRange(Key.of(AUX_FILE_PREFIX), Key.of(ORIGIN_PREFIX + 1))
NOT_INHERITED_DENSE_RANGE: Final = KeyRange(Key.aux_files_v1(), Key.of(3, 0, 0, 0, 0, 3))


def relation_directory_v2_range(spcnode: int, dbnode: int) -> KeyRange:
    """Return the range of all relation directory v2 keys of one database."""
    prefix = RELDIR_V2_PREFIX
    return KeyRange(Key.of(prefix, spcnode, dbnode), Key.of(prefix, spcnode, dbnode, _U32, 0xFF, _U32))


def relation_range(rel: RelTag) -> KeyRange:
    """Return the range of all keys of one fork: its blocks and its size."""
    return KeyRange(Key.relation_block(rel, 0), Key.relation_block(rel.with_fork(rel.forknum + 1), 0))


def database_range(spcnode: int, dbnode: int) -> KeyRange:
    """Return the range of all dense keys of one database."""
    return KeyRange(Key.of(0, spcnode, dbnode), Key.of(0, spcnode, dbnode, _U32, 0xFF, _U32))


def slru_segment_range(kind: SlruKind, segno: int) -> KeyRange:
    """Return the range of the blocks and the size of one SLRU segment."""
    return KeyRange(Key.of(1, kind, 1, segno, 0, 0), Key.of(1, kind, 1, segno, 1, 0))
