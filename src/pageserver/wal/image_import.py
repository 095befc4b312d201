"""Makes image layers of a copied data directory.

Everything lies at one LSN, so the layers are cut by size only: values in key order, a new layer whenever the current
one has enough. Pages are never seen by Python: a piece names a file and a range of its blocks.

    DataDirectory ──▶ pieces in key order ──▶ plan_layers ──▶ TimelineStore.write_image_layer, one call per layer

Source: spec keyspace.md 4, 5.14 (what a fresh timeline holds), wal.md 11, stock.md 1.4 and 2 (tablespaces).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol

from pageserver.keyspace.aux_files import aux_file_key, encode_aux_files, tablespace_path
from pageserver.keyspace.directories import (
    encode_database_directory,
    encode_relation_directory,
    encode_replication_origin,
    encode_size,
    encode_slru_directory,
    encode_twophase_directory,
)
from pageserver.keyspace.key import MAX_KEY, MIN_KEY, PAGE_SIZE, Key, RelTag, SlruKind
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from pageserver.timeline.engine import LayerFacts
from pageserver.wal.data_directory import DatabaseFiles, DataDirectory

LAYER_SIZE_BYTES: Final = 128 * 1024 * 1024
"""Pages in one image layer, before compression; what image creation of compaction aims at as well."""

ValuePiece = tuple[str, bytes, bytes]
"""`bytes`, key, value."""
FilePiece = tuple[str, bytes, str, int, int]
"""`file`, first key, path, offset, number of blocks."""
Piece = ValuePiece | FilePiece


class ImageLayerWriter(Protocol):
    """The part of the engine's store that writes image layers; `_core.TimelineStore` is one."""

    def write_image_layer(
        self,
        key_start: bytes,
        key_end: bytes,
        lsn: int,
        pieces: list[Piece],
        generation: int | None,
        compression: str,
    ) -> LayerFacts: ...
    def remove_layers(self, names: list[str], *, delete_files: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One image layer: its keys (half-open) and its contents in ascending order."""

    key_start: Key
    key_end: Key
    pieces: list[Piece]
    size_bytes: int


def pieces_of(directory: DataDirectory, *, control: ControlFile, pg_version: int) -> Iterator[Piece]:
    """Yield all values of an imported timeline in key order."""
    databases = [db for db in directory.databases if db.relmap is not None or db.relations]
    yield _value(
        Key.database_directory(),
        encode_database_directory({(db.tablespace, db.database): db.relmap is not None for db in databases}),
    )
    for database in databases:
        yield from _database_pieces(database)
    yield from _slru_pieces(directory)
    yield _value(
        Key.twophase_directory(), encode_twophase_directory((xid for xid, _ in directory.twophase), pg_version)
    )
    for xid, data in directory.twophase:
        yield _value(Key.twophase_file(xid), data)
    yield _value(Key.control_file(), directory.control_file)
    yield _value(Key.checkpoint(), control.checkpoint.raw)
    yield from _sparse_pieces(directory)


def plan_layers(
    pieces: Iterable[Piece], *, layer_size_bytes: int = LAYER_SIZE_BYTES, whole_key_space: bool = False
) -> Iterator[PlannedLayer]:
    """Cut pieces into layers of about one size. The sparse keyspace gets a layer of its own.

    A layer covers its first to its last key; nothing lies between two layers, so nobody looks for it there. With
    `whole_key_space` there is no room between two layers, before the first or behind the last one: then no search from
    above goes past them (docs/decisions/0008).
    """
    layers = _cut_layers(pieces, layer_size_bytes)
    return _without_holes(layers) if whole_key_space else layers


def _without_holes(layers: Iterable[PlannedLayer]) -> Iterator[PlannedLayer]:
    start, layer = MIN_KEY, None
    for following in layers:
        if layer is not None:
            yield replace(layer, key_start=start, key_end=following.key_start)
            start = following.key_start
        layer = following
    assert layer is not None, "a data directory has at least a control file"
    yield replace(layer, key_start=start, key_end=MAX_KEY)


def _cut_layers(pieces: Iterable[Piece], layer_size_bytes: int) -> Iterator[PlannedLayer]:
    current: list[Piece] = []
    size = 0
    for piece in _split_files(pieces, max_bytes=layer_size_bytes):
        length = _length(piece)
        starts_sparse = current and Key(piece[1]).is_sparse() and not Key(current[-1][1]).is_sparse()
        if current and (size + length > layer_size_bytes or starts_sparse):
            yield _layer(current, size)
            current, size = [], 0
        current.append(piece)
        size += length
    if current:
        yield _layer(current, size)


def write_layers(
    store: ImageLayerWriter,
    layers: Iterable[PlannedLayer],
    *,
    lsn: Lsn,
    generation: int | None,
    compression: str,
    on_bytes: Callable[[int], None],
) -> list[LayerFacts]:
    """Write the layers one after the other (blocking; for a worker thread). `on_bytes` hears the total so far; what it
    raises, or the store, ends it, and no layer is left.
    """
    written: list[LayerFacts] = []
    total = 0
    try:
        for layer in layers:
            written.append(
                store.write_image_layer(layer.key_start, layer.key_end, lsn, layer.pieces, generation, compression)
            )
            total += layer.size_bytes
            on_bytes(total)
    except BaseException:
        store.remove_layers([layer.name for layer in written], delete_files=True)
        raise
    return written


# Kinds of values.


def _database_pieces(database: DatabaseFiles) -> Iterator[Piece]:
    spc, db = database.tablespace, database.database
    if database.relmap is not None:
        yield _value(Key.relmap(spc, db), database.relmap)
    present = [(relation, fork) for relation, forks in database.relations.items() for fork in forks]
    yield _value(Key.relation_directory(spc, db), encode_relation_directory(present))
    for relation, forks in sorted(database.relations.items()):
        for number, fork in sorted(forks.items()):
            tag = RelTag(spc, db, relation, number)
            block = 0
            for path, blocks in fork.segments:
                if blocks:
                    yield ("file", Key.relation_block(tag, block), path, 0, blocks)
                block += blocks
            yield _value(Key.relation_size(tag), encode_size(block))


def _slru_pieces(directory: DataDirectory) -> Iterator[Piece]:
    for kind in SlruKind:
        segments = [segment for segment in directory.slru_segments if segment.kind == kind]
        yield _value(Key.slru_directory(kind), encode_slru_directory(segment.number for segment in segments))
        for segment in segments:
            if segment.pages:
                yield ("file", Key.slru_block(kind, segment.number, 0), segment.path, 0, segment.pages)
            yield _value(Key.slru_segment_size(kind, segment.number), encode_size(segment.pages))


def _sparse_pieces(directory: DataDirectory) -> Iterator[Piece]:
    by_key: dict[Key, list[tuple[str, bytes]]] = {}
    for oid, location in directory.tablespaces:
        path = tablespace_path(oid)
        by_key.setdefault(aux_file_key(path), []).append((path, location.encode("utf-8", "surrogateescape")))
    for key, files in sorted(by_key.items()):
        yield _value(key, encode_aux_files(files))
    for origin, lsn in sorted(directory.origins):
        yield _value(Key.replication_origin(origin), encode_replication_origin(lsn))


def _value(key: Key, value: bytes) -> ValuePiece:
    return ("bytes", key, value)


# Cutting.


def _split_files(pieces: Iterable[Piece], *, max_bytes: int) -> Iterator[Piece]:
    blocks_max = max(1, max_bytes // PAGE_SIZE)
    for piece in pieces:
        if len(piece) == 3:
            yield piece
            continue
        _, key, path, offset, blocks = piece
        for first in range(0, blocks, blocks_max):
            count = min(blocks_max, blocks - first)
            yield ("file", Key(key).add(first), path, offset + first * PAGE_SIZE, count)


def _layer(pieces: list[Piece], size: int) -> PlannedLayer:
    last = pieces[-1]
    end = Key(last[1]).add(1 if len(last) == 3 else last[4])
    return PlannedLayer(Key(pieces[0][1]), end, pieces, size)


def _length(piece: Piece) -> int:
    return len(piece[2]) if len(piece) == 3 else piece[4] * PAGE_SIZE
