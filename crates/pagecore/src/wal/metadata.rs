//! What a record means beyond the blocks it registers (spec wal.md 3.4, 5).
//!
//! A metadata record is an operation on directories, sizes, SLRU pages or the checkpoint value. Parsing needs only the
//! record; applying needs stored state. All parts borrow the record's bytes.

use super::{le, DecodedRecord, WalError, RMGR_INFO_MASK};
use crate::{RelTag, SlruKind};

/// A list of 32-bit numbers inside a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct U32List<'a>(&'a [u8]);

impl<'a> U32List<'a> {
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.0.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
    }

    /// Groups of `N` numbers; what is left over at the end is not given.
    fn groups<const N: usize>(&self) -> impl Iterator<Item = [u32; N]> + 'a {
        self.0.chunks_exact(4 * N).map(|c| {
            let mut group = [0; N];
            for (value, bytes) in group.iter_mut().zip(c.chunks_exact(4)) {
                *value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            group
        })
    }
}

/// Clears bits of visibility-map pages that the record does not register (spec wal.md 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClearVmBits {
    /// Heap blocks whose bits are cleared; none if not asked for, or not this shard's.
    pub new_heap_block: Option<u32>,
    pub old_heap_block: Option<u32>,
    /// The visibility-map fork of the heap.
    pub vm_rel: RelTag,
    /// 0x01 all-visible, 0x02 all-frozen.
    pub flags: u8,
    /// From Neon's own resource manager (the interpreted protocol tells the two apart).
    pub is_neon_rmgr: bool,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XactEndKind {
    Commit,
    Abort,
    CommitPrepared,
    AbortPrepared,
}

impl XactEndKind {
    pub fn is_commit(self) -> bool {
        matches!(self, XactEndKind::Commit | XactEndKind::CommitPrepared)
    }

    pub fn is_prepared(self) -> bool {
        matches!(self, XactEndKind::CommitPrepared | XactEndKind::AbortPrepared)
    }
}

/// Commit or abort, also of a prepared transaction (spec wal.md 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XactEnd<'a> {
    pub kind: XactEndKind,
    /// The prepared transaction's id if there is one, else that of the record.
    pub xid: u32,
    pub xl_xid: u32,
    /// Microseconds since 2000-01-01 UTC.
    pub time: i64,
    pub xinfo: u32,
    pub db: u32,
    pub tablespace: u32,
    pub subxacts: U32List<'a>,
    relations: U32List<'a>,
    /// Without its terminating zero; empty if the record has none.
    pub gid: &'a [u8],
    /// 0 if the transaction was not replayed from elsewhere.
    pub origin: u16,
    pub origin_lsn: u64,
}

impl<'a> XactEnd<'a> {
    /// Relations that are gone with the end of the transaction: (tablespace, database, relation).
    pub fn relations(&self) -> impl Iterator<Item = (u32, u32, u32)> + 'a {
        self.relations.groups::<3>().map(|[spc, db, rel]| (spc, db, rel))
    }

    /// The transaction, then its subtransactions, in the order of the record.
    pub fn xids(&self) -> impl Iterator<Item = u32> + 'a {
        std::iter::once(self.xid).chain(self.subxacts.iter()).filter(|xid| *xid != 0)
    }

    pub fn drops_relations(&self) -> bool {
        !self.relations.is_empty()
    }
}

/// A new multixact (spec wal.md 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiXactCreate<'a> {
    pub multi: u32,
    pub offset: u32,
    members: U32List<'a>,
}

impl<'a> MultiXactCreate<'a> {
    pub fn len(&self) -> u32 {
        (self.members.len() / 2) as u32
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// (transaction, status)
    pub fn members(&self) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.members.groups::<2>().map(|[xid, status]| (xid, status))
    }
}

/// One row of the table of spec wal.md 3.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataRecord<'a> {
    ClearVmBits(ClearVmBits),
    SmgrCreate {
        rel: RelTag,
    },
    SmgrTruncate {
        block: u32,
        spcnode: u32,
        dbnode: u32,
        relnode: u32,
        flags: u32,
    },
    DatabaseCreate {
        db: u32,
        tablespace: u32,
        src_db: u32,
        src_tablespace: u32,
    },
    DatabaseDrop {
        db: u32,
        tablespaces: U32List<'a>,
    },
    /// Stock timelines only (spec stock.md 2).
    TablespaceCreate {
        oid: u32,
        path: &'a [u8],
    },
    TablespaceDrop {
        oid: u32,
    },
    SlruZeroPage {
        kind: SlruKind,
        page: u32,
    },
    ClogTruncate {
        page: u32,
        oldest_xid: u32,
        oldest_xid_db: u32,
    },
    XactEnd(XactEnd<'a>),
    XactPrepare {
        xid: u32,
        data: &'a [u8],
    },
    MultiXactCreate(MultiXactCreate<'a>),
    MultiXactTruncate {
        oldest_multi_db: u32,
        start_offset: u32,
        end_offset: u32,
        start_member: u32,
        end_member: u32,
    },
    RelmapUpdate {
        db: u32,
        tablespace: u32,
        nbytes: i32,
        data: &'a [u8],
    },
    /// Any record of resource manager 0; `info` is masked.
    Xlog {
        info: u8,
        data: &'a [u8],
    },
    /// A file that Neon's compute keeps in the page server; empty content deletes it.
    AuxFilePut {
        path: &'a str,
        content: &'a [u8],
    },
    RunningXacts {
        oldest_running_xid: u32,
    },
    OriginSet {
        origin: u16,
        lsn: u64,
    },
    OriginDrop {
        origin: u16,
    },
}

const XACT_OPMASK: u8 = 0x70;
const XACT_HAS_INFO: u8 = 0x80;

const XINFO_DBINFO: u32 = 0x001;
const XINFO_SUBXACTS: u32 = 0x002;
const XINFO_RELATIONS: u32 = 0x004;
const XINFO_INVALS: u32 = 0x008;
const XINFO_TWOPHASE: u32 = 0x010;
const XINFO_ORIGIN: u32 = 0x020;
const XINFO_GID: u32 = 0x080;
const XINFO_DROPPED_STATS: u32 = 0x100;

const AUX_FILE_PREFIX: &[u8] = b"neon-file:";

fn bad<T>(text: String) -> Result<T, WalError> {
    Err(WalError::Decode(text))
}

/// Reads main data in order.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WalError> {
        match self.data.get(self.at..self.at.saturating_add(n)) {
            Some(bytes) => {
                self.at += n;
                Ok(bytes)
            }
            None => bad(format!("main data of {} bytes ends too early", self.data.len())),
        }
    }

    fn u32(&mut self) -> Result<u32, WalError> {
        le::u32(self.take(4)?, 0)
    }

    fn u64(&mut self) -> Result<u64, WalError> {
        le::u64(self.take(8)?, 0)
    }

    /// A u32 count, then so many items of `size` bytes.
    fn list(&mut self, size: usize) -> Result<&'a [u8], WalError> {
        let n = self.u32()? as usize;
        self.take(n.saturating_mul(size))
    }
}

/// Page number of an SLRU: 32 bits before PostgreSQL 17, 64 from then on, of which the low half is used.
fn slru_page(major: u8, r: &mut Reader<'_>) -> Result<u32, WalError> {
    Ok(if major >= 17 { r.u64()? as u32 } else { r.u32()? })
}

/// A field of the main data, at a fixed offset.
fn main_u32(record: &DecodedRecord<'_>, at: usize) -> Result<u32, WalError> {
    le::u32(record.main_data, at)
}

pub(super) fn smgr<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    match record.info & RMGR_INFO_MASK {
        0x10 => {
            let fork = main_u32(record, 12)?;
            let forknum = match u8::try_from(fork) {
                Ok(fork) if fork <= crate::key::INIT_FORK => fork,
                _ => return bad(format!("SMGR CREATE of fork {fork}")),
            };
            let rel = RelTag {
                spcnode: main_u32(record, 0)?,
                dbnode: main_u32(record, 4)?,
                relnode: main_u32(record, 8)?,
                forknum,
            };
            Ok(Some(MetadataRecord::SmgrCreate { rel }))
        }
        0x20 => Ok(Some(MetadataRecord::SmgrTruncate {
            block: main_u32(record, 0)?,
            spcnode: main_u32(record, 4)?,
            dbnode: main_u32(record, 8)?,
            relnode: main_u32(record, 12)?,
            flags: main_u32(record, 16)?,
        })),
        _ => Ok(None),
    }
}

pub(super) fn dbase<'a>(major: u8, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let mut r = Reader { data: record.main_data, at: 0 };
    match (major, record.info & RMGR_INFO_MASK) {
        (_, 0x00) => Ok(Some(MetadataRecord::DatabaseCreate {
            db: r.u32()?,
            tablespace: r.u32()?,
            src_db: r.u32()?,
            src_tablespace: r.u32()?,
        })),
        (14, 0x10) | (15.., 0x20) => {
            let db = r.u32()?;
            let tablespaces = U32List(r.list(4)?);
            Ok(Some(MetadataRecord::DatabaseDrop { db, tablespaces }))
        }
        _ => Ok(None),
    }
}

pub(super) fn tablespace<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let oid = main_u32(record, 0)?;
    match record.info & RMGR_INFO_MASK {
        0x00 => {
            let path = &record.main_data[4..];
            let path = path.split(|b| *b == 0).next().unwrap_or(path);
            Ok(Some(MetadataRecord::TablespaceCreate { oid, path }))
        }
        0x10 => Ok(Some(MetadataRecord::TablespaceDrop { oid })),
        other => bad(format!("tablespace record with info {other:#04x}")),
    }
}

pub(super) fn clog<'a>(major: u8, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let mut r = Reader { data: record.main_data, at: 0 };
    match record.info & RMGR_INFO_MASK {
        0x00 => Ok(Some(MetadataRecord::SlruZeroPage { kind: SlruKind::Clog, page: slru_page(major, &mut r)? })),
        0x10 => Ok(Some(MetadataRecord::ClogTruncate {
            page: slru_page(major, &mut r)?,
            oldest_xid: r.u32()?,
            oldest_xid_db: r.u32()?,
        })),
        other => bad(format!("CLOG record with info {other:#04x}")),
    }
}

pub(super) fn multixact<'a>(major: u8, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let mut r = Reader { data: record.main_data, at: 0 };
    Ok(Some(match record.info & RMGR_INFO_MASK {
        0x00 => MetadataRecord::SlruZeroPage { kind: SlruKind::MultiXactOffsets, page: slru_page(major, &mut r)? },
        0x10 => MetadataRecord::SlruZeroPage { kind: SlruKind::MultiXactMembers, page: slru_page(major, &mut r)? },
        0x20 => {
            let (multi, offset) = (r.u32()?, r.u32()?);
            MetadataRecord::MultiXactCreate(MultiXactCreate { multi, offset, members: U32List(r.list(8)?) })
        }
        0x30 => MetadataRecord::MultiXactTruncate {
            oldest_multi_db: r.u32()?,
            start_offset: r.u32()?,
            end_offset: r.u32()?,
            start_member: r.u32()?,
            end_member: r.u32()?,
        },
        other => return bad(format!("multixact record with info {other:#04x}")),
    }))
}

pub(super) fn xact<'a>(major: u8, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let kind = match record.info & XACT_OPMASK {
        0x00 => XactEndKind::Commit,
        0x10 => return Ok(Some(MetadataRecord::XactPrepare { xid: record.xid, data: record.main_data })),
        0x20 => XactEndKind::Abort,
        0x30 => XactEndKind::CommitPrepared,
        0x40 => XactEndKind::AbortPrepared,
        _ => return Ok(None),
    };
    parse_xact_end(major, record, kind).map(|end| Some(MetadataRecord::XactEnd(end)))
}

/// The optional parts of a commit or abort come in a fixed order (spec wal.md 5.2).
fn parse_xact_end<'a>(major: u8, record: &DecodedRecord<'a>, kind: XactEndKind) -> Result<XactEnd<'a>, WalError> {
    let mut r = Reader { data: record.main_data, at: 0 };
    let time = r.u64()? as i64;
    let xinfo = if record.info & XACT_HAS_INFO != 0 { r.u32()? } else { 0 };
    let mut end = XactEnd {
        kind,
        xid: record.xid,
        xl_xid: record.xid,
        time,
        xinfo,
        db: 0,
        tablespace: 0,
        subxacts: U32List::default(),
        relations: U32List::default(),
        gid: &[],
        origin: record.origin,
        origin_lsn: 0,
    };
    if xinfo & XINFO_DBINFO != 0 {
        (end.db, end.tablespace) = (r.u32()?, r.u32()?);
    }
    if xinfo & XINFO_SUBXACTS != 0 {
        end.subxacts = U32List(r.list(4)?);
    }
    if xinfo & XINFO_RELATIONS != 0 {
        end.relations = U32List(r.list(12)?);
    }
    if xinfo & XINFO_DROPPED_STATS != 0 {
        // PostgreSQL 18 widened the object's id to 64 bits.
        r.list(if major >= 18 { 16 } else { 12 })?;
    }
    if xinfo & XINFO_INVALS != 0 {
        r.list(16)?;
    }
    if xinfo & XINFO_TWOPHASE != 0 {
        end.xid = r.u32()?;
        if xinfo & XINFO_GID != 0 {
            let rest = &r.data[r.at..];
            let Some(len) = rest.iter().position(|b| *b == 0) else {
                return bad("prepared transaction's gid has no end".to_string());
            };
            end.gid = &rest[..len];
            r.at += len + 1;
        }
    }
    if xinfo & XINFO_ORIGIN != 0 {
        end.origin_lsn = r.u64()?;
        r.u64()?;
    }
    Ok(end)
}

pub(super) fn relmap<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    let (db, tablespace, nbytes) = (main_u32(record, 0)?, main_u32(record, 4)?, main_u32(record, 8)? as i32);
    let data = &record.main_data[12..];
    if usize::try_from(nbytes) != Ok(data.len()) {
        return bad(format!("relation map of {nbytes} bytes has {}", data.len()));
    }
    Ok(Some(MetadataRecord::RelmapUpdate { db, tablespace, nbytes, data }))
}

pub(super) fn standby<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    if record.info & RMGR_INFO_MASK != 0x10 {
        return Ok(None);
    }
    // The bool at 8 is followed by three bytes of garbage.
    Ok(Some(MetadataRecord::RunningXacts { oldest_running_xid: main_u32(record, 16)? }))
}

pub(super) fn replorigin<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    match record.info & RMGR_INFO_MASK {
        0x00 => {
            let (lsn, origin) = (le::u64(record.main_data, 0)?, le::u16(record.main_data, 8)?);
            Ok(Some(MetadataRecord::OriginSet { origin, lsn }))
        }
        0x10 => Ok(Some(MetadataRecord::OriginDrop { origin: le::u16(record.main_data, 0)? })),
        _ => Ok(None),
    }
}

/// Aux files come as logical messages, and count at once even if their transaction rolls back (spec wal.md 5.9).
pub(super) fn logical_message<'a>(record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
    if record.info & RMGR_INFO_MASK != 0x00 {
        return Ok(None);
    }
    let mut r = Reader { data: record.main_data, at: 8 };
    let (prefix_len, message_len) = (r.u64()?, r.u64()?);
    let length = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let prefix = r.take(length(prefix_len))?;
    let content = r.take(length(message_len))?;
    let prefix = prefix.strip_suffix(&[0]).unwrap_or(prefix);
    let Some(path) = prefix.strip_prefix(AUX_FILE_PREFIX) else { return Ok(None) };
    match std::str::from_utf8(path) {
        Ok(path) => Ok(Some(MetadataRecord::AuxFilePut { path, content })),
        Err(_) => bad("path of an aux file is not UTF-8".to_string()),
    }
}

pub(super) fn xlog<'a>(record: &DecodedRecord<'a>) -> Option<MetadataRecord<'a>> {
    Some(MetadataRecord::Xlog { info: record.info & RMGR_INFO_MASK, data: record.main_data })
}
