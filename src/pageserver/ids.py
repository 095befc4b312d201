"""Identifiers: tenants, timelines, shards, generations, in all their text, JSON and binary forms (spec keyspace.md
9.1, 9.2, 10.2; remote-storage.md 1).

JSON forms are the text forms, except that shard numbers, counts, stripe sizes and generations alone are JSON numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import total_ordering
from typing import ClassVar, Final, NewType, Self

from pageserver.errors import RequestError

ShardNumber = NewType("ShardNumber", int)
"""Zero-based index of a shard, 0..255."""
ShardCount = NewType("ShardCount", int)
"""Number of shards, 0..255; 0 is the unsharded tenant, whose names carry no suffix."""
StripeSize = NewType("StripeSize", int)
"""Pages of 8 KiB that stay together on one shard."""

DEFAULT_STRIPE_SIZE: Final = StripeSize(2048)
SHARD_LAYOUT_V1: Final = 1
SHARD_LAYOUT_BROKEN: Final = 255

_ID_TEXT: Final = re.compile(r"[0-9A-Fa-f]{32}", re.ASCII)
_INDEX_TEXT: Final = re.compile(r"[0-9A-Fa-f]{4}", re.ASCII)


class IdParseError(RequestError):
    """The text or bytes are not an identifier of the wanted kind. Carries ``kind`` and ``text``."""

    def __init__(self, *, kind: str, text: str, reason: str) -> None:
        super().__init__(f"invalid {kind} {text!r}: {reason}", kind=kind, text=text)


class ShardIdentityError(RequestError):
    """Number, count and stripe size do not make a shard identity (keyspace.md 9.1)."""


@dataclass(frozen=True, slots=True, order=True)
class _Id:
    """16 bytes; text is 32 lower-case hexadecimal digits."""

    raw: bytes
    kind: ClassVar[str] = "id"

    def __post_init__(self) -> None:
        if len(self.raw) != 16:
            raise IdParseError(kind=self.kind, text=self.raw.hex(), reason=f"{len(self.raw)} bytes where 16 are needed")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read 32 hexadecimal digits of either case. Raises: IdParseError."""
        if _ID_TEXT.fullmatch(text) is None:
            raise IdParseError(kind=cls.kind, text=text, reason="32 hexadecimal digits are needed")
        return cls(bytes.fromhex(text))

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes] = os.urandom) -> Self:
        """Make a new id from random bytes."""
        return cls(random_bytes(16))

    def __bytes__(self) -> bytes:
        return self.raw

    def __str__(self) -> str:
        return self.raw.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw.hex()})"


@dataclass(frozen=True, slots=True, order=True, repr=False)
class TenantId(_Id):
    """Names a tenant."""

    kind: ClassVar[str] = "tenant id"

    __str__ = _Id.__str__


@dataclass(frozen=True, slots=True, order=True, repr=False)
class TimelineId(_Id):
    """Names a timeline (a branch) within a tenant."""

    kind: ClassVar[str] = "timeline id"

    __str__ = _Id.__str__


@dataclass(frozen=True, slots=True, order=True)
class ShardIndex:
    """A shard within its tenant. Text: number and count as 2 + 2 lower-case hexadecimal digits."""

    number: ShardNumber
    count: ShardCount

    @classmethod
    def parse(cls, text: str) -> ShardIndex:
        """Read exactly 4 hexadecimal digits. Raises: IdParseError."""
        if _INDEX_TEXT.fullmatch(text) is None:
            raise IdParseError(kind="shard index", text=text, reason="4 hexadecimal digits are needed")
        return cls.from_bytes(bytes.fromhex(text))

    @classmethod
    def from_bytes(cls, raw: bytes) -> ShardIndex:
        """Read number and count, one byte each. Raises: IdParseError."""
        if len(raw) != 2:
            raise IdParseError(kind="shard index", text=raw.hex(), reason=f"{len(raw)} bytes where 2 are needed")
        return cls(ShardNumber(raw[0]), ShardCount(raw[1]))

    def is_unsharded(self) -> bool:
        return self.number == 0 and self.count == 0

    def suffix(self) -> str:
        """Return what paths append to the tenant id: nothing if unsharded, else ``-NNCC``."""
        return "" if self.is_unsharded() else f"-{self}"

    def __bytes__(self) -> bytes:
        return bytes((self.number, self.count))

    def __str__(self) -> str:
        return f"{self.number:02x}{self.count:02x}"


UNSHARDED_INDEX: Final = ShardIndex(ShardNumber(0), ShardCount(0))


@dataclass(frozen=True, slots=True, order=True)
class TenantShardId:
    """One shard of one tenant, globally unique. Text: the bare tenant id if unsharded, else ``<tenant>-NNCC``."""

    tenant_id: TenantId
    shard_number: ShardNumber = ShardNumber(0)
    shard_count: ShardCount = ShardCount(0)

    @classmethod
    def unsharded(cls, tenant_id: TenantId) -> TenantShardId:
        return cls(tenant_id)

    @classmethod
    def parse(cls, text: str) -> TenantShardId:
        """Read 32 characters (unsharded) or 37 (the separator's value is not checked). Raises: IdParseError."""
        if len(text) == 32:
            return cls(TenantId.parse(text))
        if len(text) == 37:
            index = ShardIndex.parse(text[33:])
            return cls(TenantId.parse(text[:32]), index.number, index.count)
        raise IdParseError(kind="tenant shard id", text=text, reason="Invalid string length")

    @classmethod
    def from_bytes(cls, raw: bytes) -> TenantShardId:
        """Read 16 bytes of tenant id, number, count. Raises: IdParseError."""
        if len(raw) != 18:
            raise IdParseError(kind="tenant shard id", text=raw.hex(), reason=f"{len(raw)} bytes where 18 are needed")
        return cls(TenantId(raw[:16]), ShardNumber(raw[16]), ShardCount(raw[17]))

    @classmethod
    def range_of_tenant(cls, tenant_id: TenantId) -> tuple[TenantShardId, TenantShardId]:
        """Return the inclusive range of ids that covers all shards of a tenant."""
        return cls(tenant_id), cls(tenant_id, ShardNumber(255), ShardCount(255))

    @property
    def shard_index(self) -> ShardIndex:
        return ShardIndex(self.shard_number, self.shard_count)

    def is_unsharded(self) -> bool:
        return self.shard_index.is_unsharded()

    def is_shard_zero(self) -> bool:
        """Return whether this shard holds what is not distributed (SLRUs, aux files, exact sizes)."""
        return self.shard_number == 0

    def suffix(self) -> str:
        """Return ``-NNCC``, or nothing if unsharded."""
        return self.shard_index.suffix()

    def slug(self) -> str:
        """Return ``NNCC`` for metric labels and logs, ``0000`` if unsharded."""
        return str(self.shard_index)

    def split_into(self, new_count: ShardCount) -> list[TenantShardId]:
        """Return the children of this shard (keyspace.md 9.4). Raises: ShardIdentityError (not a multiple)."""
        old_count = max(self.shard_count, 1)
        if new_count % old_count or not 0 < new_count <= 255:
            raise ShardIdentityError(
                f"cannot split a tenant of {old_count} shards into {new_count}",
                hint="the new count must be a multiple of the old one, and at most 255",
            )
        return [
            TenantShardId(self.tenant_id, ShardNumber(number), new_count)
            for number in range(self.shard_number, new_count, old_count)
        ]

    def __bytes__(self) -> bytes:
        return self.tenant_id.raw + bytes((self.shard_number, self.shard_count))

    def __str__(self) -> str:
        return f"{self.tenant_id}{self.suffix()}"


@dataclass(frozen=True, slots=True)
class ShardIdentity:
    """Enough of a shard to map keys; the mapping itself is ``keyspace.shard``.

    Made with ``ShardIdentity.new`` (checked) or ``ShardIdentity.unsharded``.
    """

    number: ShardNumber
    count: ShardCount
    stripe_size: StripeSize
    layout: int = SHARD_LAYOUT_V1

    @classmethod
    def new(cls, number: int, count: int, stripe_size: int) -> ShardIdentity:
        """Check in the order of keyspace.md 9.1. Raises: ShardIdentityError."""
        if count == 0:
            raise ShardIdentityError("Invalid shard count")
        if number > count - 1:
            raise ShardIdentityError("Invalid shard number")
        if stripe_size == 0:
            raise ShardIdentityError("Invalid stripe size")
        if number < 0 or count > 255 or not 0 < stripe_size <= 0xFFFF_FFFF:
            raise ShardIdentityError(f"shard {number} of {count} with stripe size {stripe_size} is out of range")
        return cls(ShardNumber(number), ShardCount(count), StripeSize(stripe_size))

    @classmethod
    def unsharded(cls, stripe_size: int = 0) -> ShardIdentity:
        """Return the identity of an unsharded tenant, which keeps a stripe size for a later split."""
        return cls(ShardNumber(0), ShardCount(0), StripeSize(stripe_size or DEFAULT_STRIPE_SIZE))

    @classmethod
    def from_parts(cls, number: int, count: int, stripe_size: int) -> ShardIdentity:
        """Return the identity for numbers that may mean "unsharded" (0 of 0). Raises: ShardIdentityError."""
        if number == 0 and count == 0:
            return cls.unsharded(stripe_size)
        return cls.new(number, count, stripe_size)

    @property
    def index(self) -> ShardIndex:
        return ShardIndex(self.number, self.count)

    def is_unsharded(self) -> bool:
        return self.index.is_unsharded()

    def is_shard_zero(self) -> bool:
        return self.number == 0

    def to_json(self) -> dict[str, int]:
        return {"number": self.number, "count": self.count, "stripe_size": self.stripe_size, "layout": self.layout}

    def __bytes__(self) -> bytes:
        return bytes((self.number, self.count)) + self.stripe_size.to_bytes(4, "big") + bytes((self.layout,))


@total_ordering
@dataclass(frozen=True, slots=True)
class Generation:
    """One attachment of a tenant shard, or none (objects from before generations existed). None sorts first."""

    number: int | None

    def __post_init__(self) -> None:
        if self.number is not None and not 0 <= self.number <= 0xFFFF_FFFF:
            raise IdParseError(kind="generation", text=str(self.number), reason="it must fit 32 bits")

    def suffix(self) -> str:
        """Return what object names append: ``-`` and 8 lower-case hexadecimal digits, or nothing for none."""
        return "" if self.number is None else f"-{self.number:08x}"

    @classmethod
    def parse_suffix(cls, text: str) -> Generation:
        """Read 8 hexadecimal digits, without the dash. Raises: IdParseError."""
        if re.fullmatch(r"[0-9A-Fa-f]{8}", text, re.ASCII) is None:
            raise IdParseError(kind="generation", text=text, reason="8 hexadecimal digits are needed")
        return cls(int(text, 16))

    def previous(self) -> Generation | None:
        """Return the generation one below, if there can be one."""
        return Generation(self.number - 1) if self.number else None

    def __lt__(self, other: Generation) -> bool:
        return (-1 if self.number is None else self.number) < (-1 if other.number is None else other.number)

    def __str__(self) -> str:
        return "none" if self.number is None else f"{self.number:08x}"


NO_GENERATION: Final = Generation(None)
