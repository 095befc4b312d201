"""The timeline's side of `pagectl verify`: every file of a data directory at an LSN, with a verdict for each block
that could not be made.

A stream is a sequence of frames, each a big-endian u32 length of a JSON header, the header, then `size` bytes of
payload:

    {"path": "base/5/16384", "kind": "relation", "fork": 0, "first": 0, "count": 128, "blocks": 900, "size": 1048576,
    "failed": {"17": "unsupported"}} {"path": "pg_xact/0000", "kind": "slru", ...}        {"path": "pg_twophase/…",
    "kind": "file", ...} {"end": true}                                         the last frame: without it the stream
    was cut off

Blocks named in `failed` are zeros in the payload; their reason is "unsupported" (redo needs a process that this
server has no installation for), "missing" or "error: …". Source: issue acceptance of verify, spec stock.md 4.
"""

import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

from pageserver.keyspace.key import PAGE_SIZE, RelTag
from pageserver.keyspace.snapshot import Snapshot
from pageserver.serve.data_directory import (
    CHUNK_BLOCKS,
    DataDirectory,
    Entry,
    Forks,
    RelationSegment,
    SlruSegment,
    SmallFile,
)

HEADER = struct.Struct(">I")


ReadEach = Callable[[RelTag, int, int, int], tuple[bytes, dict[int, str]]]
"""Reads pages one by one even if some fail: (relation, first block, count, lsn) gives the pages and, by block
number, why
one could not be made (its bytes are zeros then)."""


def encode_frame(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """Return one frame."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return HEADER.pack(len(text)) + text + payload


def entries(directory: DataDirectory, snapshot: Snapshot) -> list[Entry]:
    """Return what a comparison looks at: permanent relations, SLRUs, relation maps and two-phase files.

    Of an unlogged relation that is the init fork alone, under its own name.
    """
    found: list[Entry] = [*directory.slru_entries(), *directory.two_phase_entries()]
    for (spc, db), has_relmap in sorted(snapshot.databases().items()):
        if has_relmap:
            found.append(directory.relmap_entry(spc, db))
        found.extend(directory.relation_entries(spc, db, Forks.FOR_STOCK, init_as_main=False))
    return found


def stream(directory: DataDirectory, read_each: ReadEach, entries: list[Entry]) -> Iterator[bytes]:
    """Yield the frames of `entries`. Blocking: drive it in a thread."""
    for entry in entries:
        match entry:
            case RelationSegment():
                yield from _relation(directory, read_each, entry)
            case SlruSegment():
                content = b"".join(directory.read(entry))
                yield encode_frame(
                    {
                        "path": entry.path,
                        "kind": "slru",
                        "slru": int(entry.kind),
                        "segno": entry.segno,
                        "size": len(content),
                    },
                    content,
                )
            case SmallFile():
                yield encode_frame({"path": entry.path, "kind": "file", "size": entry.size}, entry.content)
    yield encode_frame({"end": True})


def _relation(directory: DataDirectory, read_each: ReadEach, entry: RelationSegment) -> Iterator[bytes]:
    rel = entry.rel
    about = {"path": entry.path, "kind": "relation", "fork": rel.forknum, "blocks": entry.blocks}
    if not entry.blocks:
        yield encode_frame({**about, "first": entry.first_block, "count": 0, "size": 0, "failed": {}})
    for done in range(0, entry.blocks, CHUNK_BLOCKS):
        first, count = entry.first_block + done, min(CHUNK_BLOCKS, entry.blocks - done)
        pages, failed = read_each(rel, first, count, directory.lsn)
        yield encode_frame(
            {**about, "first": first, "count": count, "size": count * PAGE_SIZE, "failed": failed}, pages
        )
