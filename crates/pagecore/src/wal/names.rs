//! The names that `pg_waldump` gives to resource managers and their records: for people, never for decisions.

use super::rmgr;

const HEAP_INIT: u8 = 0x80;

/// The name of a resource manager.
pub fn rmgr_name(rmid: u8) -> &'static str {
    match rmid {
        rmgr::XLOG => "XLOG",
        rmgr::XACT => "Transaction",
        rmgr::SMGR => "Storage",
        rmgr::CLOG => "CLOG",
        rmgr::DBASE => "Database",
        rmgr::TBLSPC => "Tablespace",
        rmgr::MULTIXACT => "MultiXact",
        rmgr::RELMAP => "RelMap",
        rmgr::STANDBY => "Standby",
        rmgr::HEAP2 => "Heap2",
        rmgr::HEAP => "Heap",
        rmgr::BTREE => "Btree",
        rmgr::HASH => "Hash",
        rmgr::GIN => "Gin",
        rmgr::GIST => "Gist",
        rmgr::SEQ => "Sequence",
        rmgr::SPGIST => "SPGist",
        rmgr::BRIN => "BRIN",
        rmgr::COMMIT_TS => "CommitTs",
        rmgr::REPLORIGIN => "ReplicationOrigin",
        rmgr::GENERIC => "Generic",
        rmgr::LOGICALMSG => "LogicalMessage",
        rmgr::NEON => "Neon",
        _ => "Custom",
    }
}

/// The name of a kind of record, with `+INIT` if it initialises its page; `UNKNOWN` for what no server writes.
pub fn record_name(major: u8, rmid: u8, info: u8) -> String {
    // Names are listed by the high four bits, from 0x00 on; empty: no such record.
    let (names, mask, has_init): (&[&str], u8, bool) = match rmid {
        rmgr::XLOG => (&XLOG, 0xF0, false),
        rmgr::XACT => (&XACT, 0x70, false),
        rmgr::SMGR => (&["", "CREATE", "TRUNCATE"], 0xF0, false),
        rmgr::CLOG | rmgr::COMMIT_TS => (&["ZEROPAGE", "TRUNCATE"], 0xF0, false),
        rmgr::DBASE if major == 14 => (&["CREATE", "DROP"], 0xF0, false),
        rmgr::DBASE => (&["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"], 0xF0, false),
        rmgr::TBLSPC => (&["CREATE", "DROP"], 0xF0, false),
        rmgr::MULTIXACT => (&["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"], 0xF0, false),
        rmgr::RELMAP => (&["UPDATE"], 0xF0, false),
        rmgr::STANDBY => (&["LOCK", "RUNNING_XACTS", "INVALIDATIONS"], 0xF0, false),
        rmgr::HEAP2 if major >= 17 => (&HEAP2_17, 0x70, true),
        rmgr::HEAP2 => (&HEAP2, 0x70, true),
        rmgr::HEAP => (&HEAP, 0x70, true),
        rmgr::BTREE => (&BTREE, 0xF0, false),
        rmgr::HASH => (&HASH, 0xF0, false),
        rmgr::GIN => (&GIN, 0xF0, false),
        rmgr::GIST => (&GIST, 0xF0, false),
        rmgr::SEQ => (&["LOG"], 0xF0, false),
        rmgr::SPGIST => (&SPGIST, 0xF0, false),
        rmgr::BRIN => (&BRIN, 0x70, true),
        rmgr::REPLORIGIN => (&["SET", "DROP"], 0xF0, false),
        rmgr::GENERIC => (&["Generic"], 0xF0, false),
        rmgr::LOGICALMSG => (&["MESSAGE"], 0xF0, false),
        rmgr::NEON => (&NEON, 0x70, true),
        _ => (&[], 0xF0, false),
    };
    let name = names.get(usize::from((info & mask) >> 4)).copied().unwrap_or_default();
    match name {
        "" => format!("UNKNOWN ({:#04x})", info & 0xF0),
        name if has_init && info & HEAP_INIT != 0 => format!("{name}+INIT"),
        name => name.to_string(),
    }
}

const XLOG: [&str; 15] = [
    "CHECKPOINT_SHUTDOWN",
    "CHECKPOINT_ONLINE",
    "NOOP",
    "NEXTOID",
    "SWITCH",
    "BACKUP_END",
    "PARAMETER_CHANGE",
    "RESTORE_POINT",
    "FPW_CHANGE",
    "END_OF_RECOVERY",
    "FPI_FOR_HINT",
    "FPI",
    "",
    "OVERWRITE_CONTRECORD",
    "CHECKPOINT_REDO",
];
const XACT: [&str; 7] =
    ["COMMIT", "PREPARE", "ABORT", "COMMIT_PREPARED", "ABORT_PREPARED", "ASSIGNMENT", "INVALIDATION"];
const HEAP2: [&str; 8] =
    ["REWRITE", "PRUNE", "VACUUM", "FREEZE_PAGE", "VISIBLE", "MULTI_INSERT", "LOCK_UPDATED", "NEW_CID"];
const HEAP2_17: [&str; 8] = [
    "REWRITE",
    "PRUNE_ON_ACCESS",
    "PRUNE_VACUUM_SCAN",
    "PRUNE_VACUUM_CLEANUP",
    "VISIBLE",
    "MULTI_INSERT",
    "LOCK_UPDATED",
    "NEW_CID",
];
const HEAP: [&str; 8] = ["INSERT", "DELETE", "UPDATE", "TRUNCATE", "HOT_UPDATE", "HEAP_CONFIRM", "LOCK", "INPLACE"];
const BTREE: [&str; 15] = [
    "INSERT_LEAF",
    "INSERT_UPPER",
    "INSERT_META",
    "SPLIT_L",
    "SPLIT_R",
    "INSERT_POST",
    "DEDUP",
    "DELETE",
    "UNLINK_PAGE",
    "UNLINK_PAGE_META",
    "NEWROOT",
    "MARK_PAGE_HALFDEAD",
    "VACUUM",
    "REUSE_PAGE",
    "META_CLEANUP",
];
const HASH: [&str; 13] = [
    "INIT_META_PAGE",
    "INIT_BITMAP_PAGE",
    "INSERT",
    "ADD_OVFL_PAGE",
    "SPLIT_ALLOCATE_PAGE",
    "SPLIT_PAGE",
    "SPLIT_COMPLETE",
    "MOVE_PAGE_CONTENTS",
    "SQUEEZE_PAGE",
    "DELETE",
    "SPLIT_CLEANUP",
    "UPDATE_META_PAGE",
    "VACUUM_ONE_PAGE",
];
const GIN: [&str; 10] = [
    "",
    "CREATE_PTREE",
    "INSERT",
    "SPLIT",
    "VACUUM_PAGE",
    "DELETE_PAGE",
    "UPDATE_META_PAGE",
    "INSERT_LISTPAGE",
    "DELETE_LISTPAGE",
    "VACUUM_DATA_LEAF_PAGE",
];
const GIST: [&str; 8] = ["PAGE_UPDATE", "DELETE", "PAGE_REUSE", "PAGE_SPLIT", "", "", "PAGE_DELETE", "ASSIGN_LSN"];
const SPGIST: [&str; 9] = [
    "",
    "ADD_LEAF",
    "MOVE_LEAFS",
    "ADD_NODE",
    "SPLIT_TUPLE",
    "PICKSPLIT",
    "VACUUM_LEAF",
    "VACUUM_ROOT",
    "VACUUM_REDIRECT",
];
const BRIN: [&str; 6] = ["CREATE_INDEX", "INSERT", "UPDATE", "SAMEPAGE_UPDATE", "REVMAP_EXTEND", "DESUMMARIZE"];
const NEON: [&str; 6] = ["INSERT", "DELETE", "UPDATE", "HOT_UPDATE", "LOCK", "MULTI_INSERT"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_pg_waldump() {
        for (major, rmid, info, want) in [
            (15, rmgr::HEAP, 0x80, "INSERT+INIT"),
            (15, rmgr::HEAP, 0x40, "HOT_UPDATE"),
            (15, rmgr::XACT, 0x80, "COMMIT"),
            (15, rmgr::XLOG, 0xB0, "FPI"),
            (15, rmgr::HEAP2, 0x10, "PRUNE"),
            (17, rmgr::HEAP2, 0x10, "PRUNE_ON_ACCESS"),
            (14, rmgr::DBASE, 0x10, "DROP"),
            (15, rmgr::DBASE, 0x21, "DROP"),
            (15, rmgr::BTREE, 0xE0, "META_CLEANUP"),
            (15, rmgr::GIST, 0x40, "UNKNOWN (0x40)"),
            (15, 200, 0x10, "UNKNOWN (0x10)"),
        ] {
            assert_eq!(record_name(major, rmid, info), want);
        }
        assert_eq!((rmgr_name(10), rmgr_name(134), rmgr_name(200)), ("Heap", "Neon", "Custom"));
    }
}
