"""A workload that makes an unmodified PostgreSQL write every kind of record that SQL can reach.

`PARTS` run on an ordinary server. `LOGICAL_PARTS` need `wal_level = logical`, which changes the records of user tables
(no shared beginnings and ends of rows): the server is restarted for them. `LAST_PARTS` move the horizon of old
transactions, for which slots and prepared transactions must be gone. `LARGE_PARTS` reach what needs ten million rows;
they run only when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.postgres.server import PostgresServer
from tests.redo.workloads import (
    brin,
    btree,
    gin,
    gist,
    hash_index,
    heap,
    large,
    logical,
    operators,
    other,
    spgist,
    system,
)
from tests.redo.workloads.session import Session

Part = Callable[[Session], None]

PARTS: tuple[Part, ...] = (
    heap.inserts_updates_deletes,
    heap.pruning_and_freezing,
    heap.row_locks_and_multixacts,
    heap.speculative_insertions,
    heap.speculative_aborts,
    heap.partition_moves,
    heap.toast_and_rewrites,
    btree.duplicates,
    btree.posting_list_splits,
    btree.long_keys,
    btree.page_deletion,
    btree.killed_items,
    hash_index.buckets,
    gin.entries_and_lists,
    gin.long_entries,
    gin.page_deletion,
    gist.splits_and_deletions,
    gist.three_levels,
    spgist.trees,
    spgist.long_prefixes,
    spgist.dead_chains,
    spgist.growing_nodes,
    brin.summaries,
    operators.operator_classes,
    other.sequences,
    other.generic_records,
    system.transactions,
    system.databases_and_tablespaces,
    system.checkpoints_and_backups,
)
LOGICAL_PARTS: tuple[Part, ...] = (logical.decoded_tables, logical.catalog_rewrites, logical.messages_and_origins)
LAST_PARTS: tuple[Part, ...] = (system.many_multixacts, system.old_transactions)
LARGE_PARTS: tuple[Part, ...] = (large.hash_second_bitmap, large.gin_high_posting_tree)


def name_of(part: Part) -> str:
    """Return the name of a part: its module's and its own, `gin.long_entries`."""
    return f"{part.__module__.rpartition('.')[2]}.{part.__name__}"


ALL_PARTS = {name_of(part): part for part in (*PARTS, *LOGICAL_PARTS, *LAST_PARTS, *LARGE_PARTS)}


def run(server: PostgresServer, *, scale: float, seed: int, only: Iterable[str] = ()) -> None:
    """Run all ordinary parts, or `only` the named ones, on a server that is running.

    `scale` multiplies the numbers of rows; coverage is complete from 0.25 on. Afterwards the server runs with
    `wal_level = logical` if a part needed it.
    """
    chosen = [ALL_PARTS[name] for name in only]
    for part in chosen or (*PARTS, *LOGICAL_PARTS, *LAST_PARTS):
        if part in LOGICAL_PARTS and server.settings["wal_level"] != "logical":
            server.settings["wal_level"] = "logical"
            server.restart()
        with Session(server, name_of(part), scale=scale, seed=seed) as session:
            part(session)
