//! Records that need directories, and therefore Python (spec wal.md 5).

use pagecore::wal::metadata::{MetadataRecord, XactEnd, XactEndKind};
use pagecore::wal::{CheckPoint, WalError};
use pagecore::{Flavour, RelTag, SlruKind};

const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_BACKUP_END: u8 = 0x50;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_END_OF_RECOVERY: u8 = 0x90;

/// PARAMETER_CHANGE ends with two bytes of garbage, which may be missing.
const PARAMETER_CHANGE_LEN: usize = 26;

/// What to do; `_core.pyi` says more about each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RareDetail {
    RelationCreate {
        rel: RelTag,
        implicit: bool,
    },
    RelationTruncate {
        spcnode: u32,
        dbnode: u32,
        relnode: u32,
        blocks: u32,
        flags: u32,
    },
    DatabaseCreate {
        db: u32,
        tablespace: u32,
        source_db: u32,
        source_tablespace: u32,
    },
    DatabaseDrop {
        db: u32,
        tablespaces: Vec<u32>,
    },
    TablespaceCreate {
        oid: u32,
        path: Vec<u8>,
    },
    TablespaceDrop {
        oid: u32,
    },
    SlruZeroPage {
        kind: SlruKind,
        page: u32,
        implicit: bool,
    },
    ClogTruncate {
        page: u32,
        oldest_xid: u32,
        oldest_xid_db: u32,
    },
    TransactionEnd {
        kind: XactEndKind,
        xid: u32,
        time: i64,
        subxacts: Vec<u32>,
        relations: Vec<(u32, u32, u32)>,
        origin: u16,
        origin_lsn: u64,
    },
    TransactionPrepare {
        xid: u32,
        data: Vec<u8>,
    },
    MultixactTruncate {
        oldest_multi_db: u32,
        start_offset: u32,
        end_offset: u32,
        start_member: u32,
        end_member: u32,
    },
    RelationMapUpdate {
        db: u32,
        tablespace: u32,
        data: Vec<u8>,
    },
    CheckpointTaken {
        shutdown: bool,
        checkpoint: CheckPoint,
    },
    ParameterChange {
        /// max_connections, max_worker_processes, max_wal_senders, max_prepared_xacts, max_locks_per_xact, wal_level
        numbers: [i32; 6],
        wal_log_hints: bool,
        track_commit_timestamp: bool,
    },
    EndOfRecovery {
        time: i64,
        tli: u32,
        prev_tli: u32,
        wal_level: Option<i32>,
    },
    BackupEnd {
        start_lsn: u64,
    },
    AuxFilePut {
        path: String,
        content: Vec<u8>,
    },
    OriginSet {
        origin: u16,
        origin_lsn: u64,
    },
}

/// A record for Python, with copies of all its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RareRecord {
    /// End of the record.
    pub lsn: pagecore::Lsn,
    pub xid: u32,
    pub rmid: u8,
    pub info: u8,
    pub origin: u16,
    pub main_data: Vec<u8>,
    pub detail: RareDetail,
}

/// Whether a commit or abort does more than set its status in CLOG.
fn has_further_effects(end: &XactEnd<'_>) -> bool {
    end.kind.is_prepared() || end.drops_relations() || end.origin != 0
}

fn array<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], WalError> {
    match data.get(at..).and_then(|rest| rest.first_chunk::<N>()) {
        Some(bytes) => Ok(*bytes),
        None => Err(WalError::Decode(format!("main data of {} bytes, {} needed", data.len(), at + N))),
    }
}

fn bool_at(data: &[u8], at: usize) -> Result<bool, WalError> {
    Ok(array::<1>(data, at)? != [0])
}

impl RareDetail {
    /// What Python has to do for a metadata record; none if Rust applies it, or it has no effect.
    pub fn of(record: &MetadataRecord<'_>, major: u8, flavour: Flavour) -> Result<Option<RareDetail>, WalError> {
        Ok(Some(match *record {
            MetadataRecord::ClearVmBits(_)
            | MetadataRecord::MultiXactCreate(_)
            | MetadataRecord::RunningXacts { .. } => return Ok(None),
            MetadataRecord::XactEnd(end) if !has_further_effects(&end) => return Ok(None),
            MetadataRecord::XactEnd(end) => RareDetail::TransactionEnd {
                kind: end.kind,
                xid: end.xid,
                time: end.time,
                subxacts: end.subxacts.iter().collect(),
                relations: end.relations().collect(),
                origin: end.origin,
                origin_lsn: end.origin_lsn,
            },
            MetadataRecord::Xlog { info, data } => return RareDetail::of_xlog(info, data, major, flavour),
            MetadataRecord::SmgrCreate { rel } => RareDetail::RelationCreate { rel, implicit: false },
            MetadataRecord::SmgrTruncate { block, spcnode, dbnode, relnode, flags } => {
                RareDetail::RelationTruncate { spcnode, dbnode, relnode, blocks: block, flags }
            }
            MetadataRecord::DatabaseCreate { db, tablespace, src_db, src_tablespace } => {
                RareDetail::DatabaseCreate { db, tablespace, source_db: src_db, source_tablespace: src_tablespace }
            }
            MetadataRecord::DatabaseDrop { db, tablespaces } => {
                RareDetail::DatabaseDrop { db, tablespaces: tablespaces.iter().collect() }
            }
            MetadataRecord::TablespaceCreate { oid, path } => RareDetail::TablespaceCreate { oid, path: path.to_vec() },
            MetadataRecord::TablespaceDrop { oid } => RareDetail::TablespaceDrop { oid },
            MetadataRecord::SlruZeroPage { kind, page } => RareDetail::SlruZeroPage { kind, page, implicit: false },
            MetadataRecord::ClogTruncate { page, oldest_xid, oldest_xid_db } => {
                RareDetail::ClogTruncate { page, oldest_xid, oldest_xid_db }
            }
            MetadataRecord::XactPrepare { xid, data } => RareDetail::TransactionPrepare { xid, data: data.to_vec() },
            MetadataRecord::MultiXactTruncate {
                oldest_multi_db,
                start_offset,
                end_offset,
                start_member,
                end_member,
            } => RareDetail::MultixactTruncate { oldest_multi_db, start_offset, end_offset, start_member, end_member },
            MetadataRecord::RelmapUpdate { db, tablespace, data, .. } => {
                RareDetail::RelationMapUpdate { db, tablespace, data: data.to_vec() }
            }
            MetadataRecord::AuxFilePut { path, content } => {
                RareDetail::AuxFilePut { path: path.to_string(), content: content.to_vec() }
            }
            MetadataRecord::OriginSet { origin, lsn } => RareDetail::OriginSet { origin, origin_lsn: lsn },
            MetadataRecord::OriginDrop { origin } => RareDetail::OriginSet { origin, origin_lsn: 0 },
        }))
    }

    fn of_xlog(info: u8, data: &[u8], major: u8, flavour: Flavour) -> Result<Option<RareDetail>, WalError> {
        let i32_at = |at| array(data, at).map(i32::from_le_bytes);
        let u32_at = |at| array(data, at).map(u32::from_le_bytes);
        let u64_at = |at| array(data, at).map(u64::from_le_bytes);
        Ok(Some(match info {
            XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE => RareDetail::CheckpointTaken {
                shutdown: info == XLOG_CHECKPOINT_SHUTDOWN,
                checkpoint: CheckPoint::decode(data).map_err(|error| WalError::Decode(error.to_string()))?,
            },
            XLOG_BACKUP_END if flavour == Flavour::Stock => RareDetail::BackupEnd { start_lsn: u64_at(0)? },
            XLOG_PARAMETER_CHANGE if data.len() >= PARAMETER_CHANGE_LEN => RareDetail::ParameterChange {
                numbers: [i32_at(0)?, i32_at(4)?, i32_at(8)?, i32_at(12)?, i32_at(16)?, i32_at(20)?],
                wal_log_hints: bool_at(data, 24)?,
                track_commit_timestamp: bool_at(data, 25)?,
            },
            XLOG_PARAMETER_CHANGE => {
                return Err(WalError::Decode(format!("parameter change of {} bytes", data.len())));
            }
            XLOG_END_OF_RECOVERY => RareDetail::EndOfRecovery {
                time: u64_at(0)? as i64,
                tli: u32_at(8)?,
                prev_tli: u32_at(12)?,
                wal_level: if major >= 17 { Some(i32_at(16)?) } else { None },
            },
            _ => return Ok(None),
        }))
    }
}
