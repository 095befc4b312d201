"""Which shard stores which key (spec keyspace.md 9.3, 9.5).

The hash is PostgreSQL's ``murmurhash32`` and ``hash_combine`` over relation number and stripe; computes calculate the
same, so every bit matters. Tablespace, database and fork are not hashed: a database made from a template must not
cross shards. The Rust core has the same function for each block; this one serves plans, tools and tests.
"""

from __future__ import annotations

from pageserver.ids import ShardIdentity
from pageserver.keyspace.key import AUX_FILE_PREFIX, INIT_FORK, Key

_U32 = 0xFFFF_FFFF


def murmur32(value: int) -> int:
    """Return the 32-bit finaliser of MurmurHash3."""
    value ^= value >> 16
    value = value * 0x85EB_CA6B & _U32
    value ^= value >> 13
    value = value * 0xC2B2_AE35 & _U32
    return value ^ value >> 16


def combine(left: int, right: int) -> int:
    """Mix a second hash into a first."""
    return left ^ (right + 0x9E37_79B9 + (left << 6) + (left >> 2)) & _U32


def shard_of_block(relnode: int, block: int, *, count: int, stripe_size: int) -> int:
    """Return the shard of a block of forks 0..2 among ``count`` shards."""
    return combine(murmur32(relnode), murmur32(block // stripe_size)) % count


def shard_of_key(key: Key, identity: ShardIdentity) -> int:
    """Return the number of the shard that owns ``key``; 0 for all that is not hashed."""
    if identity.count < 2 or not key.is_relation_block() or key.field5 == INIT_FORK:
        return 0
    return shard_of_block(key.field4, key.field6, count=identity.count, stripe_size=identity.stripe_size)


def is_global(key: Key) -> bool:
    """Return whether every shard keeps this key."""
    return not (key.is_relation_block() or key.field1 in (1, AUX_FILE_PREFIX))


def is_local(key: Key, identity: ShardIdentity) -> bool:
    """Return whether this shard owns the key."""
    return identity.count < 2 or shard_of_key(key, identity) == identity.number


def is_disposable(key: Key, identity: ShardIdentity) -> bool:
    """Return whether this shard may drop the key whenever it meets it."""
    return identity.count >= 2 and not is_global(key) and not is_local(key, identity)
