"""The same chains of WAL records through both engines: `pagecore::redo` in process, and the WAL redo process.

Chains are cut from the WAL of a PostgreSQL that runs in this benchmark, of one kind each: heap insertions, heap
updates, insertions into B-tree leaves, and whatever pgbench does to its pages. A chain is 1, 10 or 100 consecutive
records of a page, with the page before them as base, as a read of the store finds it. Both engines must make the same
pages, byte for byte, before anything is measured.

Slices of some milliseconds of either engine alternate, and each figure is the best slice: a longer one is never
undisturbed on a machine that has other work. What is in the process's figure: the encoding of the request, the pipes,
both context switches, redo, the check of the answer. With two threads requests are pipelined to the one process that a
tenant has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.world import MAJOR, Report, installation, note, work_directory
from pageserver._core import RedoChains, RedoPool
from pageserver.keyspace.key import Key, RelTag
from pageserver.postgres.redo_scratch import RedoScratch
from tests.postgres.server import PostgresServer
from tests.reference.wal_chains import BlockId, Chain, collect_chains, first_record_after

LENGTHS = (1, 10, 100)
THREADS = (1, 2)
SLICE_SECONDS = 0.006
CHAINS_MAX = 400
"""Of each kind and length: together they stay in no cache of the processor."""

Record = tuple[int, bytes]
CutChain = tuple[bytes, tuple[int, bytes], list[Record]]

SETTINGS = {
    # No images inside of chains, and no checkpoint that would ask for some.
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "wal_keep_size": "8GB",
}
LOAD = """
    create table narrow (a int, b int);
    insert into narrow select i, i from generate_series(1, 60000) i;
    create table updated (id int, n int) with (fillfactor = 10);
    insert into updated select i, 0 from generate_series(1, 4000) i;
    begin;  -- in one transaction nothing of this can be pruned in between
    update updated set n = n + 1; update updated set n = n + 1; update updated set n = n + 1;
    update updated set n = n + 1; update updated set n = n + 1; update updated set n = n + 1;
    commit;
    create table keyed (k int); create index on keyed (k);
    insert into keyed select (random() * 1e9)::int from generate_series(1, 60000) i;
"""


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` is about what a line takes."""

    seconds: float
    pgbench_transactions: int = 20_000


@dataclass(frozen=True, slots=True)
class Kind:
    """Which records a chain is made of."""

    name: str
    takes: Callable[[int, int], bool]
    """Of resource manager and info: may the record be in the chain?"""


KINDS = (
    Kind("heap insert", lambda rmid, info: rmid == 10 and info & 0x70 == 0x00),
    Kind("heap update", lambda rmid, info: rmid == 10 and info & 0x70 in (0x20, 0x40)),
    Kind("btree insert", lambda rmid, info: rmid == 11 and info & 0xF0 == 0x00),
)
MIXED = Kind("pgbench", lambda rmid, info: True)


def run(report: Report, options: Options) -> None:
    """Print a line for each kind, length and number of threads."""
    with work_directory() as base:
        loaded, mixed = make_wal(base, options)
    folders = {str(MAJOR): str(installation().folder)}
    with closing(RedoScratch(pg_installations=folders)) as scratch:
        pool = RedoPool(tenant="bench", timeout_seconds=60.0, command=scratch.command)
        try:
            for kind, source in [*((kind, loaded) for kind in KINDS), (MIXED, mixed)]:
                for length in LENGTHS:
                    cut = cut_chains(source, kind, length)
                    assert cut, f"the WAL has no chain of {length} records of {kind.name}"
                    measure(report, options, kind.name, length, cut, pool)
        finally:
            pool.shutdown()


Chains = dict[BlockId, Chain]


def make_wal(base: Path, options: Options) -> tuple[Chains, Chains]:
    """Run a PostgreSQL; return the chains of the load, and those of pgbench."""
    note(f"PostgreSQL {MAJOR}, load and pgbench")
    server = PostgresServer(MAJOR, base / "primary", installation=installation(), settings=SETTINGS)
    with server:
        wal = server.data_dir / "pg_wal"
        start = position(server)
        server.psql(LOAD)
        server.sql("select pg_switch_wal()")
        between = position(server)
        server.pgbench("-i", "-q", "-s", "1", "-I", "dtgp")
        server.pgbench("-n", "-c", "4", "-t", str(options.pgbench_transactions // 4))
        server.stop("fast")
        loaded = collect_chains(wal, 1, first_record_after(wal, 1, start), MAJOR)
        mixed = collect_chains(wal, 1, first_record_after(wal, 1, between), MAJOR)
    return loaded, mixed


def position(server: PostgresServer) -> int:
    return int(server.value("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


def cut_chains(chains: Chains, kind: Kind, length: int) -> list[CutChain]:
    """Cut pieces of ``length`` records from runs of the kind, each with the page before it."""
    cut: list[CutChain] = []
    for block, chain in sorted(chains.items()):
        if not chain.complete or block[3] != 0:
            continue
        key = key_of(block)
        # Not more from one page than from others, so that all sizes of pages occur.
        for first in pieces(chain.records, kind, length, most=max(1, 40 // length)):
            before = RedoChains([(key, None, chain.records[:first])], pg_version=MAJOR, hint_bits_logged=False)
            base = (chain.records[first - 1][0], before.pages()[0])
            cut.append((key, base, chain.records[first : first + length]))
            if len(cut) == CHAINS_MAX:
                return cut
    return cut


def pieces(records: list[Record], kind: Kind, length: int, *, most: int) -> Iterator[int]:
    """Yield where pieces begin that hold nothing but the kind, without overlap."""
    run_length = 0
    for index, (_, record) in enumerate(records):
        # The first record of a chain has no page before it.
        run_length = run_length + 1 if index > 0 and kind.takes(record[17], record[16]) else 0
        if run_length == length:
            yield index + 1 - length
            run_length = 0
            most -= 1
            if most == 0:
                return


def key_of(block: BlockId) -> bytes:
    spc, db, rel, fork, number = block
    return bytes(Key.relation_block(RelTag(spc, db, rel, fork), number))


def measure(report: Report, options: Options, name: str, length: int, cut: list[CutChain], pool: RedoPool) -> None:
    """Compare the engines' pages, then their time."""
    chains = RedoChains(cut, pg_version=MAJOR, hint_bits_logged=False)
    assert chains.pages() == chains.pages(pool), f"{name}, {length} records: the engines differ"
    native_alone = 0.0
    for threads in THREADS:
        native = Slices(chains, threads, None)
        process = Slices(chains, threads, pool)
        deadline = time.monotonic() + options.seconds
        while time.monotonic() < deadline:
            native.take()
            process.take()
        native_us, process_us = native.best_us_per_page, process.best_us_per_page
        native_alone = native_alone or native_us
        report.line(
            "redo",
            chain=name,
            records=length,
            threads=threads,
            chains=len(chains),
            native_us_per_page=round(native_us, 3),
            native_us_per_record=round(native_us / length, 4),
            process_us_per_page=round(process_us, 2),
            process_us_per_record=round(process_us / length, 3),
            ratio=round(process_us / native_us, 1),
            native_speed_up=round(native_alone / native_us, 2),
            slices=native.taken,
            target="ratio >= 10" if length <= 10 else None,
        )


class Slices:
    """The best time of one engine for a page."""

    def __init__(self, chains: RedoChains, threads: int, pool: RedoPool | None) -> None:
        self._chains = chains
        self._threads = threads
        self._pool = pool
        self._rounds = 1
        while self._seconds() < SLICE_SECONDS / 2:
            self._rounds *= 2
        self.best_us_per_page = float("inf")
        self.taken = 0

    def take(self) -> None:
        """Measure once more."""
        self.best_us_per_page = min(self.best_us_per_page, self._seconds() / self._rounds / len(self._chains) * 1e6)
        self.taken += 1

    def _seconds(self) -> float:
        return self._chains.seconds(threads=self._threads, rounds=self._rounds, pool=self._pool)
