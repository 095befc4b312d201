"""The storage engine over the layer files of Neon's page server: every recorded answer must come out of ours.

Data: `../shared/vectors/neon-pg16` (see its README): 5,000 pages and the sizes, existences and SLRU segments that its
page server gave at random LSNs of one history.
"""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pageserver import _core

VECTORS = Path(__file__).parents[3] / "shared" / "vectors" / "neon-pg16"
TENANT = bytes.fromhex("aa" * 16)
TIMELINE = bytes.fromhex("aa" * 15 + "01")
SLRU_KINDS = {"clog": 0, "multixact_members": 1, "multixact_offsets": 2}

pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason="the vectors are not there")


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def _lines(name: str) -> Iterator[dict[str, Any]]:
    with (VECTORS / name).open() as lines:
        yield from map(json.loads, lines)


def _rel(entry: dict[str, Any]) -> tuple[int, int, int, int]:
    spc, db, rel = map(int, entry["rel"].split("/"))
    return spc, db, rel, entry["fork"]


def _size_for_a_client(store: _core.TimelineStore, rel: tuple[int, int, int, int], lsn: int) -> int | None:
    """Return the size, of a dropped relation the last one; None where the answer is an error (keyspace.md 5.4)."""
    blocks = store.rel_size(*rel, lsn)
    if blocks is None:
        spc, db, relation, fork = rel
        [last] = store.get_many([struct.pack(">BIIIBI", 0, spc, db, relation, fork, 0xFFFF_FFFF)], lsn)
        blocks = None if last is None else int.from_bytes(last[:4], "little")
    return blocks


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_core.TimelineStore]:
    """The timeline that the bucket's index describes."""
    directory = tmp_path_factory.mktemp("neon")
    subprocess.run(["tar", "--zstd", "-xf", VECTORS / "bucket.tar.zst", "-C", directory], check=True)
    remote = directory / "tenants" / TENANT.hex() / "timelines" / TIMELINE.hex()
    index = json.loads((remote / "index_part.json-00000001").read_text())
    flushed = _lsn(index["metadata_bytes"]["disk_consistent_lsn"])
    opened = _core.TimelineStore(
        directory=directory,
        tenant_id=TENANT,
        timeline_id=TIMELINE,
        shard=(0, 0, 2048),
        pg_version=16,
        flavour="stock",
        hint_bits_logged=False,
        data_checksums=False,
        last_record_lsn=flushed,
        prev_record_lsn=_lsn(index["metadata_bytes"]["prev_record_lsn"]),
        disk_consistent_lsn=flushed,
        gc_cutoff_lsn=0,
        next_open_layer_at=flushed + 1,
        ancestor=None,
        ancestor_lsn=0,
        redo=None,
        caches=_core.Caches(block_cache_bytes=64 << 20, page_cache_bytes=64 << 20, value_memory_bytes=0),
    )
    opened.add_layers(
        [
            (name, remote / f"{name}-{layer['generation']:08x}", layer["file_size"])
            for name, layer in index["layer_metadata"].items()
        ]
    )
    yield opened
    opened.shutdown()


def test_every_recorded_page_comes_out_byte_for_byte(store: _core.TimelineStore) -> None:
    """Goal: read path and redo agree with Neon's, whose redo was PostgreSQL itself. Method: hashes of 5,000 pages."""
    different = []
    for entry in _lines("pages.jsonl"):
        spc, db, rel, fork = _rel(entry)
        page = store.read_blocks(spc, db, rel, fork, entry["block"], 1, _lsn(entry["lsn"]), stamp_checksums=False)
        if hashlib.sha256(page).hexdigest() != entry["sha256"]:
            different.append(entry)
    assert different == []


def test_every_recorded_size_and_segment_comes_out(store: _core.TimelineStore) -> None:
    """Goal: directories, sizes and SLRU segments agree. Method: 2,000 answers; an error stands for any error."""
    asked = 0
    for entry in _lines("metadata.jsonl"):
        lsn = _lsn(entry["lsn"]) if "lsn" in entry else 0
        match entry["ask"]:
            case "exists":
                assert store.rel_exists(*_rel(entry), lsn) == entry["exists"], entry
            case "nblocks":
                assert _size_for_a_client(store, _rel(entry), lsn) == entry.get("blocks"), entry
            case "dbsize":
                blocks = store.db_size(entry.get("spc", 1663), entry["db"], lsn)
                assert (None if blocks is None else blocks * 8192) == entry.get("bytes"), entry
            case "slru":
                if "error" in entry:
                    with pytest.raises(Exception, match="could not find"):
                        store.slru_segment(SLRU_KINDS[entry["slru"]], entry["segment"], lsn)
                else:
                    segment = store.slru_segment(SLRU_KINDS[entry["slru"]], entry["segment"], lsn)
                    assert len(segment) == entry["blocks"] * 8192, entry
                    assert hashlib.sha256(segment).hexdigest() == entry["sha256"], entry
            case _:
                continue
        asked += 1
    assert asked == 2000
