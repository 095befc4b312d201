"""The WAL redo process on real servers: pages from their WAL against pages of their data files."""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pageserver._core import RedoChains, RedoMetrics, RedoPool
from pageserver.postgres.redo_scratch import EXTENSION_FOLDER, RedoScratch
from tests.conftest import MakeServer
from tests.postgres.provision import MAJORS_WITH_HEADERS, Installation
from tests.postgres.server import PostgresServer
from tests.reference.wal_chains import (
    BlockId,
    Chain,
    block_references,
    collect_chains,
    first_record_after,
    read_records,
)

with_headers = pytest.mark.parametrize("major", MAJORS_WITH_HEADERS)

RM_HEAP, XLOG_HEAP_INPLACE = 10, 0x70

KINDS = ("heap", "btree", "hash", "gist", "spgist", "gin", "brin")


@dataclass
class World:
    """Pools and what they logged."""

    scratch: RedoScratch
    metrics: RedoMetrics
    log: list[tuple[str, dict[str, Any]]]
    pools: list[RedoPool]

    def pool(self, tenant: str = "tenant", timeout_seconds: float = 30.0) -> RedoPool:
        pool = RedoPool(
            tenant=tenant,
            timeout_seconds=timeout_seconds,
            command=self.scratch.command,
            log=self.note,
            metrics=self.metrics,
        )
        self.pools.append(pool)
        return pool

    def note(self, event: str, fields: dict[str, Any]) -> None:
        self.log.append((event, fields))

    def live(self) -> int:
        snapshot = self.metrics.snapshot()
        started = snapshot["pageserver_wal_redo_process_started_total"]
        stopped = snapshot["pageserver_wal_redo_process_stopped_total"]
        assert isinstance(started, int) and isinstance(stopped, dict)
        return started - sum(stopped.values())


@pytest.fixture(scope="module")
def scratch(postgres_installation: Callable[[int], Installation]) -> Iterator[RedoScratch]:
    """One set of templates for all tests, as one server would have."""
    folders = {str(major): str(postgres_installation(major).folder) for major in MAJORS_WITH_HEADERS}
    if not EXTENSION_FOLDER.exists():
        pytest.skip("the WAL redo extension is not built: make walredo")
    with closing(RedoScratch(pg_installations=folders)) as made:
        yield made


@pytest.fixture
def world(scratch: RedoScratch) -> Iterator[World]:
    made = World(scratch, RedoMetrics(), [], [])
    yield made
    for pool in made.pools:
        pool.shutdown()
    assert made.live() == 0


def key_of(block: BlockId) -> bytes:
    spc, db, rel, fork, number = block
    return struct.pack(">BIIIBI", 0, spc, db, rel, fork, number)


def request(chain: Chain, block: BlockId, major: int, hints: bool = False) -> dict[str, Any]:
    return {
        "key": key_of(block),
        "lsn": chain.records[-1][0],
        "pg_version": major,
        "hint_bits_logged": hints,
        "base": None,
        "records": chain.records,
    }


def load(server: PostgresServer) -> None:
    """Make every index kind work: insertions in and out of order, updates, deletes, vacuum, splits, sorted builds."""
    server.psql(
        """
        create extension if not exists plpgsql;
        create table t (a int, b int, c text, p point, arr int[], r int4range) with (fillfactor = 80);
        create sequence s;
        create index t_btree on t using btree (b);
        create index t_hash on t using hash (b);
        create index t_gist on t using gist (p);
        create index t_spgist on t using spgist (p);
        create index t_spgist_text on t using spgist (c);
        create index t_gin on t using gin (arr);
        create index t_brin on t using brin (a) with (pages_per_range = 4, autosummarize = off);
        create unlogged table u (a int primary key); create index u_hash on u using hash (a);
        """
    )
    insert = (
        "insert into t select i, (random() * 100000)::int, md5(i::text), point(random() * 1000, random() * 1000), "
        "array[i % 100, i % 1000, (random() * 5000)::int], int4range(i, i + 10) from generate_series({}, {}) i"
    )
    for step in range(4):
        server.psql(insert.format(step * 4000, step * 4000 + 3999))
        server.psql(f"update t set b = b + 1, arr = arr || {step} where a % 7 = {step}; select nextval('s')")
        server.psql(f"delete from t where a % 11 = {step}")
        server.psql("vacuum t")
        server.psql("checkpoint" if step % 2 else "select brin_summarize_new_values('t_brin'::regclass)")
    server.psql("create table f as select * from t; create index f_gist on f using gist (p); vacuum (freeze) f")
    server.psql("create index f_brin on f using brin (a); create index f_gin on f using gin (arr)")
    server.psql("delete from t where a < 8000; vacuum t; select brin_desummarize_range('t_brin', 0)")
    server.psql(
        "begin; select * from t where a = 9000 for update; savepoint x; update t set b = 1 where a < 9100; commit"
    )


@dataclass
class Sample:
    """A stopped server with its chains, and the kind of each relation."""

    server: PostgresServer
    chains: dict[BlockId, Chain]
    kinds: dict[tuple[int, int, int], str]


def take_sample(server: PostgresServer) -> Sample:
    start = int(server.value("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
    load(server)
    rows = server.sql(
        "select coalesce(nullif(c.reltablespace, 0), d.dattablespace)::bigint, d.oid::bigint, "
        "pg_relation_filenode(c.oid)::bigint, coalesce(a.amname, 'sequence') from pg_class c left join pg_am a "
        "on a.oid = c.relam join pg_database d on d.datname = current_database() and not c.relisshared "
        "where pg_relation_filenode(c.oid) is not null and c.relpersistence = 'p'"
    )
    kinds = {(int(str(s)), int(str(d)), int(str(r))): str(kind) for s, d, r, kind in rows}
    server.stop("fast")
    wal = server.data_dir / "pg_wal"
    return Sample(server, collect_chains(wal, 1, first_record_after(wal, 1, start), server.major), kinds)


def file_page(data_dir: Path, block: BlockId) -> bytes | None:
    """Return the block of a data file of the default tablespace; None beyond the file's end."""
    spc, db, rel, fork, number = block
    if spc != 1663:
        return None
    path = data_dir / "base" / str(db) / (str(rel) + ("", "_fsm", "_vm", "_init")[fork])
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(number * 8192)
        return file.read(8192) or None


def without_gists_mark(page: bytes, kind: str) -> bytes:
    """Clear GiST's mark of deleted tuples: 15.20 sets it no more (spec walredo.md 11)."""
    if kind != "gist":
        return page
    flags = struct.unpack_from("<H", page, 8188)[0] & ~0x04
    return page[:8188] + struct.pack("<H", flags) + page[8190:]


def masked(page: bytes, kind: str, fork: int) -> bytes:
    """Hide what a server may change without WAL (spec walredo.md 16): LSN, checksum, hints, unused space."""
    out = bytearray(page)
    out[0:10] = bytes(10)
    if fork == 2:
        return bytes(out)
    out[10] &= ~0x07 & 0xFF
    out[20:24] = bytes(4)
    lower, upper, special = struct.unpack_from("<HHH", out, 12)
    if 24 <= lower <= upper <= special <= 8192 and kind not in ("sequence", "brin"):
        out[lower:upper] = bytes(upper - lower)
    if kind in ("heap", "sequence"):
        _mask_heap_items(out, lower)
    elif kind == "gin" and struct.unpack_from("<H", out, 8190)[0] & 4:
        # A deleted page: redo initialises it, the server only marks it.
        out[12:16], out[24:] = bytes(4), bytes(8168)
    elif kind == "btree":
        _mask_btree(out, lower)
    elif kind == "hash":
        _mask_line_pointers(out, lower)
        flags = struct.unpack_from("<H", out, 8188)[0]
        struct.pack_into("<H", out, 8188, flags & ~0x80)
    elif kind == "gist":
        _mask_line_pointers(out, lower)
        out[8176:8184] = bytes(8)
        flags = struct.unpack_from("<H", out, 8188)[0]
        struct.pack_into("<H", out, 8188, flags & ~(0x08 | 0x10))
    elif kind == "brin":
        flags = struct.unpack_from("<H", out, 8188)[0]
        struct.pack_into("<H", out, 8188, flags & ~1)
        if struct.unpack_from("<H", out, 8190)[0] == 0xF093:
            out[lower:upper] = bytes(upper - lower)
    return bytes(out)


def _mask_heap_items(out: bytearray, lower: int) -> None:
    for at in range(24, lower, 4):
        (item,) = struct.unpack_from("<I", out, at)
        offset, flags, length = item & 0x7FFF, item >> 15 & 3, item >> 17
        if flags != 1:
            continue
        (infomask,) = struct.unpack_from("<H", out, offset + 20)
        frozen = infomask & 0x0300 == 0x0300
        struct.pack_into("<H", out, offset + 20, infomask & (~0x0C00 & 0xFFFF if frozen else 0x000F))
        out[offset + 8 : offset + 12] = bytes(4)
        out[offset + length : offset + (length + 7 & ~7)] = bytes((length + 7 & ~7) - length)


def _mask_btree(out: bytearray, lower: int) -> None:
    flags, _ = struct.unpack_from("<HH", out, 8188)
    if flags & 1:
        _mask_line_pointers(out, lower)
    struct.pack_into("<HH", out, 8188, flags & ~0x60, 0)


def _mask_line_pointers(out: bytearray, lower: int) -> None:
    for at in range(24, lower, 4):
        (item,) = struct.unpack_from("<I", out, at)
        if item >> 15 & 3:
            struct.pack_into("<I", out, at, item & ~0x18000)


@with_headers
@pytest.mark.parametrize("hints", [False, True], ids=["plain", "hint bits logged"])
def test_every_page_made_by_the_process_equals_the_servers_own(
    major: int, hints: bool, make_server: MakeServer, world: World
) -> None:
    """Goal: redo on a stock server is right, for all kinds of relations. Method: replay the whole chain of every block
    that the WAL makes from nothing, compare with the data files of the cleanly stopped server.
    """
    settings = {"autovacuum": "off", "wal_log_hints": "on" if hints else "off", "max_wal_size": "10GB"}
    server = make_server(major, settings={**settings, "wal_keep_size": "10GB", "full_page_writes": "off"})
    sample = take_sample(server)
    pool = world.pool()
    equal: Counter[str] = Counter()
    different: list[str] = []
    records = 0
    seconds = 0.0
    compared: list[tuple[bytes, None, list[tuple[int, bytes]]]] = []
    kinds: list[str] = []
    for block, chain in sample.chains.items():
        kind = sample.kinds.get(block[:3])
        on_disk = file_page(server.data_dir, block)
        if kind in (None, "sequence") or not chain.complete or on_disk is None or block[3] in (1, 3):
            continue
        begun = time.perf_counter()
        page = pool.redo(**request(chain, block, major, hints))
        seconds += time.perf_counter() - begun
        records += len(chain.records)
        compared.append((key_of(block), None, chain.records))
        kinds.append(kind)
        if masked(page, kind, block[3]) == masked(on_disk, kind, block[3]):
            equal[kind] += 1
        elif not _is_cache_of_spgist(kind, block):
            different.append(f"{kind} {block}")
    print(f"\n{major}: {dict(equal)}, {records} records, {seconds / records * 1e6:.1f} us a record")
    assert different == []
    for kind in KINDS:
        assert equal[kind] > 0, f"no {kind} page was compared"
    both = RedoChains(compared, pg_version=major, hint_bits_logged=hints)
    for kind, native, process in zip(kinds, both.pages(), both.pages(pool), strict=True):
        assert without_gists_mark(native, kind) == without_gists_mark(process, kind), "native redo makes other bytes"
    assert both.seconds(threads=2, rounds=1) > 0 and both.seconds(threads=2, rounds=1, pool=pool) > 0
    assert world.live() == 1, f"one process did it all: {world.log}"


def _is_cache_of_spgist(kind: str, block: BlockId) -> bool:
    """The metapage's list of last used pages is never logged (stock.md 4)."""
    return kind == "spgist" and block[4] == 0


@with_headers
def test_an_inplace_update_of_a_catalog_changes_the_page_and_nothing_else(
    major: int, make_server: MakeServer, world: World
) -> None:
    """From 18 on such a record carries cache invalidations; redo would remove a file, and the sandbox kills for that.

    Method: VACUUM of pg_class right after a checkpoint, so that the record has an image and needs no base page.
    """
    server = make_server(major, "inplace", settings={"full_page_writes": "on", "autovacuum": "off"})
    server.psql("create table t as select 1 as a; checkpoint")
    start = int(server.value("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
    server.psql("vacuum pg_class")
    server.stop("fast")
    wal = server.data_dir / "pg_wal"
    pool, asked = world.pool(), 0
    for _, end, record in read_records(wal, 1, first_record_after(wal, 1, start)):
        if (record[17], record[16] & 0x70) != (RM_HEAP, XLOG_HEAP_INPLACE):
            continue
        for reference in block_references(record, major):
            if reference.makes_page:
                chain = Chain([(end, record)], complete=True)
                assert len(pool.redo(**request(chain, reference.block, major))) == 8192
                asked += 1
    assert asked
    assert not [fields for event, fields in world.log if event in ("failed", "received output")]
