"""Which records PostgreSQL 14 to 18 can write with built-in access methods: the table that coverage is measured by.

A *kind* is a pair of resource manager and info as `pg_waldump` names it; a record that initialises its page has a kind
of its own (`+INIT`). `KINDS` lists all of them with the versions that have them. What SQL cannot reach carries the
reason in `unreachable`; everything else must occur.

Records of one kind take different paths through redo. A *variant* is such a path, told apart by the record's main data
and its block references (`record_variants.py`).

Sources: spec wal.md 3, 5, walredo.md 8-15; headers of 15, 16 and 18 (`access/*xlog*.h`, `access/xact.h`,
`access/clog.h`, `access/multixact.h`, `access/commit_ts.h`, `catalog/pg_control.h`, `catalog/storage_xlog.h`,
`commands/*.h`, `replication/*.h`, `storage/standbydefs.h`, `utils/relmapper.h`).
"""

from __future__ import annotations

from dataclasses import dataclass

MAJORS = (14, 15, 16, 17, 18)


@dataclass(frozen=True, slots=True)
class Kind:
    """One record type. `info` are the bits that name it: the high four, or those of the operation and the init bit."""

    rmgr: str
    name: str
    info: int
    majors: tuple[int, ...] = MAJORS
    unreachable: str = ""
    """Why no SQL makes a server write it; empty if some does."""


def kinds_of(major: int) -> list[Kind]:
    """Return the kinds that a server of this version knows, in the order of resource managers and info."""
    return [kind for kind in KINDS if major in kind.majors]


def _manager(rmgr: str, *names: tuple[int, str], majors: tuple[int, ...] = MAJORS) -> list[Kind]:
    return [Kind(rmgr, name, info, majors) for info, name in names]


_UNTIL_16, _SINCE_17 = (14, 15, 16), (17, 18)

KINDS: tuple[Kind, ...] = (
    *_manager(
        "XLOG",
        (0x00, "CHECKPOINT_SHUTDOWN"),
        (0x10, "CHECKPOINT_ONLINE"),
        (0x30, "NEXTOID"),
        (0x40, "SWITCH"),
        (0x50, "BACKUP_END"),
        (0x60, "PARAMETER_CHANGE"),
        (0x70, "RESTORE_POINT"),
        (0x80, "FPW_CHANGE"),
        (0xA0, "FPI_FOR_HINT"),
        (0xB0, "FPI"),
    ),
    Kind("XLOG", "NOOP", 0x20, unreachable="nothing in the server writes it"),
    Kind("XLOG", "END_OF_RECOVERY", 0x90, unreachable="only a standby that is promoted writes it, on a new timeline"),
    Kind(
        "XLOG",
        "OVERWRITE_CONTRECORD",
        0xD0,
        unreachable="only recovery writes it, after a crash that left half of a record at the end of the WAL",
    ),
    Kind("XLOG", "CHECKPOINT_REDO", 0xE0, _SINCE_17),
    *_manager(
        "Transaction",
        (0x00, "COMMIT"),
        (0x10, "PREPARE"),
        (0x20, "ABORT"),
        (0x30, "COMMIT_PREPARED"),
        (0x40, "ABORT_PREPARED"),
        (0x50, "ASSIGNMENT"),
        (0x60, "INVALIDATION"),
    ),
    *_manager("Storage", (0x10, "CREATE"), (0x20, "TRUNCATE")),
    *_manager("CLOG", (0x00, "ZEROPAGE"), (0x10, "TRUNCATE")),
    *_manager("Database", (0x00, "CREATE"), (0x10, "DROP"), majors=(14,)),
    *_manager(
        "Database", (0x00, "CREATE_FILE_COPY"), (0x10, "CREATE_WAL_LOG"), (0x20, "DROP"), majors=(15, 16, 17, 18)
    ),
    *_manager("Tablespace", (0x00, "CREATE"), (0x10, "DROP")),
    *_manager(
        "MultiXact", (0x00, "ZERO_OFF_PAGE"), (0x10, "ZERO_MEM_PAGE"), (0x20, "CREATE_ID"), (0x30, "TRUNCATE_ID")
    ),
    *_manager("RelMap", (0x00, "UPDATE")),
    *_manager("Standby", (0x00, "LOCK"), (0x10, "RUNNING_XACTS"), (0x20, "INVALIDATIONS")),
    *_manager("Heap2", (0x00, "REWRITE")),
    *_manager("Heap2", (0x10, "PRUNE"), (0x20, "VACUUM"), (0x30, "FREEZE_PAGE"), majors=_UNTIL_16),
    *_manager(
        "Heap2",
        (0x10, "PRUNE_ON_ACCESS"),
        (0x20, "PRUNE_VACUUM_SCAN"),
        (0x30, "PRUNE_VACUUM_CLEANUP"),
        majors=_SINCE_17,
    ),
    *_manager(
        "Heap2",
        (0x40, "VISIBLE"),
        (0x50, "MULTI_INSERT"),
        (0xD0, "MULTI_INSERT+INIT"),
        (0x60, "LOCK_UPDATED"),
        (0x70, "NEW_CID"),
    ),
    *_manager(
        "Heap",
        (0x00, "INSERT"),
        (0x80, "INSERT+INIT"),
        (0x10, "DELETE"),
        (0x20, "UPDATE"),
        (0xA0, "UPDATE+INIT"),
        (0x30, "TRUNCATE"),
        (0x40, "HOT_UPDATE"),
        (0x50, "HEAP_CONFIRM"),
        (0x60, "LOCK"),
        (0x70, "INPLACE"),
    ),
    Kind("Heap", "HOT_UPDATE+INIT", 0xC0, unreachable="a HOT update stays on a page that holds the old tuple already"),
    *_manager(
        "Btree",
        (0x00, "INSERT_LEAF"),
        (0x10, "INSERT_UPPER"),
        (0x20, "INSERT_META"),
        (0x30, "SPLIT_L"),
        (0x40, "SPLIT_R"),
        (0x50, "INSERT_POST"),
        (0x60, "DEDUP"),
        (0x70, "DELETE"),
        (0x80, "UNLINK_PAGE"),
        (0x90, "UNLINK_PAGE_META"),
        (0xA0, "NEWROOT"),
        (0xB0, "MARK_PAGE_HALFDEAD"),
        (0xC0, "VACUUM"),
        (0xD0, "REUSE_PAGE"),
        (0xE0, "META_CLEANUP"),
    ),
    *_manager(
        "Hash",
        (0x00, "INIT_META_PAGE"),
        (0x10, "INIT_BITMAP_PAGE"),
        (0x20, "INSERT"),
        (0x30, "ADD_OVFL_PAGE"),
        (0x40, "SPLIT_ALLOCATE_PAGE"),
        (0x50, "SPLIT_PAGE"),
        (0x60, "SPLIT_COMPLETE"),
        (0x70, "MOVE_PAGE_CONTENTS"),
        (0x80, "SQUEEZE_PAGE"),
        (0x90, "DELETE"),
        (0xA0, "SPLIT_CLEANUP"),
        (0xB0, "UPDATE_META_PAGE"),
        (0xC0, "VACUUM_ONE_PAGE"),
    ),
    *_manager(
        "Gin",
        (0x10, "CREATE_PTREE"),
        (0x20, "INSERT"),
        (0x30, "SPLIT"),
        (0x40, "VACUUM_PAGE"),
        (0x50, "DELETE_PAGE"),
        (0x60, "UPDATE_META_PAGE"),
        (0x70, "INSERT_LISTPAGE"),
        (0x80, "DELETE_LISTPAGE"),
        (0x90, "VACUUM_DATA_LEAF_PAGE"),
    ),
    *_manager(
        "Gist",
        (0x00, "PAGE_UPDATE"),
        (0x10, "DELETE"),
        (0x20, "PAGE_REUSE"),
        (0x30, "PAGE_SPLIT"),
        (0x60, "PAGE_DELETE"),
    ),
    Kind(
        "Gist",
        "ASSIGN_LSN",
        0x70,
        unreachable="only with wal_level = minimal, for an index whose changes are not logged; such a server cannot be"
        " followed",
    ),
    *_manager("Sequence", (0x00, "LOG")),
    *_manager(
        "SPGist",
        (0x10, "ADD_LEAF"),
        (0x20, "MOVE_LEAFS"),
        (0x30, "ADD_NODE"),
        (0x40, "SPLIT_TUPLE"),
        (0x50, "PICKSPLIT"),
        (0x60, "VACUUM_LEAF"),
        (0x70, "VACUUM_ROOT"),
        (0x80, "VACUUM_REDIRECT"),
    ),
    *_manager(
        "BRIN",
        (0x00, "CREATE_INDEX"),
        (0x10, "INSERT"),
        (0x90, "INSERT+INIT"),
        (0x20, "UPDATE"),
        (0xA0, "UPDATE+INIT"),
        (0x30, "SAMEPAGE_UPDATE"),
        (0x40, "REVMAP_EXTEND"),
        (0x50, "DESUMMARIZE"),
    ),
    *_manager("CommitTs", (0x00, "ZEROPAGE"), (0x10, "TRUNCATE")),
    *_manager("ReplicationOrigin", (0x00, "SET"), (0x10, "DROP")),
    *_manager("Generic", (0x00, "Generic")),
    *_manager("LogicalMessage", (0x00, "MESSAGE")),
)
