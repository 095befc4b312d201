"""The engine's face for rare records (``_core.WalIngest``), played by a dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pageserver.ids import ShardIdentity
from pageserver.keyspace.directories import (
    decode_database_directory,
    decode_relation_directory,
    decode_size,
    encode_size,
)
from pageserver.keyspace.key import Key, RelTag, SlruKind
from pageserver.keyspace.shard import is_local
from pageserver.keyspace.snapshot import Snapshot
from pageserver.wal.apply import RecordApplier
from pageserver.wal.keyspace_writer import initial_values
from tests.unit.dict_store import DictStore


@dataclass
class Rare:
    """A rare record; ``detail`` has the fields that ``_core.pyi`` names for its kind."""

    kind: str
    lsn: int
    detail: Any


@dataclass
class FakeModification:
    """Writes at ``lsn`` into a dictionary store. Block values that are no images are kept in ``values``."""

    identity: ShardIdentity = field(default_factory=ShardIdentity.unsharded)
    store: DictStore = field(default_factory=DictStore)
    lsn: int = 8
    tolerant_until: int = 0
    remembered: list[tuple[int, ...]] = field(default_factory=list)
    forgotten: list[tuple[int, ...]] = field(default_factory=list)
    values: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    written: list[bytes] = field(default_factory=list)

    @property
    def checkpoint(self) -> bytes:
        return self.store.get(Key.checkpoint(), self.lsn)

    @checkpoint.setter
    def checkpoint(self, raw: bytes) -> None:
        self.put(Key.checkpoint(), raw)

    def get(self, key: bytes) -> bytes | None:
        return self.store.find(key, self.lsn)

    def put(self, key: bytes, image: bytes) -> None:
        self.store.put(key, self.lsn, image)
        self.written.append(bytes(key))

    def put_value(self, key: bytes, encoded_value: bytes) -> None:
        self.values[bytes(key), self.lsn] = encoded_value

    def rel_size(self, spc: int, db: int, rel: int, fork: int) -> int | None:
        databases = decode_database_directory(self.get(Key.database_directory()) or b"")
        if (spc, db) not in databases:
            return None
        relations = decode_relation_directory(self.get(Key.relation_directory(spc, db)) or b"")
        return (
            decode_size(self.get(Key.relation_size(RelTag(spc, db, rel, fork))) or b"")
            if (rel, fork) in relations
            else None
        )

    def set_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None:
        self.put(Key.relation_size(RelTag(spc, db, rel, fork)), encode_size(blocks))

    def remember_rel_size(self, spc: int, db: int, rel: int, fork: int, blocks: int) -> None:
        self.remembered.append((spc, db, rel, fork, blocks))

    def forget_rel(self, spc: int, db: int, rel: int, fork: int) -> None:
        self.forgotten.append((spc, db, rel, fork))

    def forget_database(self, spc: int, db: int) -> None:
        self.forgotten.append((spc, db))

    def copy_relation(self, source: tuple[int, int, int, int], target: tuple[int, int, int, int], blocks: int) -> None:
        for block in range(blocks):
            key = Key.relation_block(RelTag(*target), block)
            if is_local(key, self.identity):
                self.put(key, self.store.get(Key.relation_block(RelTag(*source), block), self.lsn))

    def set_slru_size(self, kind: int, segno: int, blocks: int) -> None:
        self.put(Key.slru_segment_size(SlruKind(kind), segno), encode_size(blocks))

    def forget_slru(self, kind: int, segno: int) -> None:
        self.forgotten.append((kind, segno))


class World:
    """A timeline that takes rare records, one LSN after the other."""

    def __init__(self, *, pg_version: int = 15, flavour: str = "stock", identity: ShardIdentity | None = None) -> None:
        self.identity = identity or ShardIdentity.unsharded()
        self.modification = FakeModification(self.identity)
        self.pg_version = pg_version
        for key, value in initial_values(self.identity):
            self.modification.put(key, value)
        self.modification.put(Key.checkpoint(), bytes(88))
        self.applier = RecordApplier(self.modification, pg_version=pg_version, flavour=flavour, identity=self.identity)

    @property
    def lsn(self) -> int:
        return self.modification.lsn

    def take(self, kind: str, **detail: Any) -> int:
        """Apply a record; return its LSN."""
        self.modification.lsn += 8
        self.modification.written.clear()
        self.applier.apply(Rare(kind, self.lsn, SimpleNamespace(**detail)))
        return self.lsn

    def create(self, spc: int, db: int, rel: int, fork: int = 0, *, implicit: bool = False) -> int:
        return self.take("RelationCreate", spc=spc, db=db, rel=rel, fork=fork, implicit=implicit)

    def fill(self, rel: RelTag, blocks: int) -> None:
        """Let a fork have blocks, each with its own contents, at the next LSN."""
        self.modification.lsn += 8
        self.modification.set_rel_size(rel.spcnode, rel.dbnode, rel.relnode, rel.forknum, blocks)
        for block in range(blocks):
            self.modification.put(Key.relation_block(rel, block), bytes([block % 256]) * 8192)

    def snapshot(self, lsn: int | None = None) -> Snapshot:
        return Snapshot(self.modification.store, self.lsn if lsn is None else lsn, self.pg_version)

    def size(self, rel: RelTag) -> int | None:
        return self.snapshot().relation_size(rel, allow_missing=True)

    def value(self, key: Key) -> bytes | None:
        """Return the encoded value that was written for a block at the current LSN, if one was."""
        return self.modification.values.get((bytes(key), self.lsn))

    def written(self) -> list[bytes]:
        """Return the keys that the last record wrote."""
        return list(self.modification.written)
