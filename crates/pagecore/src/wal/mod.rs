//! WAL: bytes become records, records become values and metadata records (spec wal.md 1-6).
//!
//! ```text
//! bytes ─▶ framer ─▶ (end LSN, record bytes) ─▶ record ─▶ interpret ─▶ values for blocks + at most one metadata record
//! ```
//!
//! Everything here is a pure function of the bytes, the PostgreSQL major version, the flavour and the shard. Nothing
//! looks at stored state: whatever has to is a metadata record, applied by `pagestore::ingest` or by Python.

pub mod checkpoint;
pub mod framer;
pub mod image;
pub mod interpret;
pub mod metadata;
pub mod names;
pub mod record;

pub use checkpoint::CheckPoint;
pub use framer::{StreamChecks, WalFramer};
pub use interpret::{Interpreter, ValueSink};
pub use metadata::MetadataRecord;
pub use record::{BlockRef, Compression, DecodedRecord, ImageRef};

use crate::{Key, Lsn};

/// Length of the fixed header of a record.
pub const RECORD_HEADER_LEN: usize = 24;

/// Numbers of the built-in resource managers, and of the one that Neon's PostgreSQL 16 and 17 add (spec wal.md 2.1).
pub mod rmgr {
    pub const XLOG: u8 = 0;
    pub const XACT: u8 = 1;
    pub const SMGR: u8 = 2;
    pub const CLOG: u8 = 3;
    pub const DBASE: u8 = 4;
    pub const TBLSPC: u8 = 5;
    pub const MULTIXACT: u8 = 6;
    pub const RELMAP: u8 = 7;
    pub const STANDBY: u8 = 8;
    pub const HEAP2: u8 = 9;
    pub const HEAP: u8 = 10;
    pub const BTREE: u8 = 11;
    pub const HASH: u8 = 12;
    pub const GIN: u8 = 13;
    pub const GIST: u8 = 14;
    pub const SEQ: u8 = 15;
    pub const SPGIST: u8 = 16;
    pub const BRIN: u8 = 17;
    pub const COMMIT_TS: u8 = 18;
    pub const REPLORIGIN: u8 = 19;
    pub const GENERIC: u8 = 20;
    pub const LOGICALMSG: u8 = 21;
    pub const NEON: u8 = 134;

    /// The built-in resource managers whose records change pages of relations.
    pub const OF_PAGES: [u8; 11] = [XLOG, HEAP2, HEAP, BTREE, HASH, GIN, GIST, SEQ, SPGIST, BRIN, GENERIC];

    pub use super::names::rmgr_name as name;
}

/// Bits of `xl_info` that belong to the resource manager (spec wal.md 2.1).
pub const RMGR_INFO_MASK: u8 = 0xF0;

/// The bytes are not the WAL they should be. The stream that gave them cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    #[error("{problem} at {lsn}")]
    Stream { problem: StreamProblem, lsn: Lsn },
    /// A record whose checksum is right does not have the structure that its header announces.
    #[error("invalid WAL record: {0}")]
    Decode(String),
    /// The same, with the end of the record known.
    #[error("invalid WAL record ending at {lsn}: {problem}")]
    Record { problem: String, lsn: Lsn },
    #[error("Unsupported key decoded at LSN {lsn}: {key}")]
    UnsupportedKey { lsn: Lsn, key: Key },
    #[error("PostgreSQL {0} is not supported; HINT: supported major versions are 14 to 18")]
    UnsupportedVersion(u8),
}

impl WalError {
    /// Names the record in which a structure was found damaged.
    pub fn at_record_end(self, lsn: Lsn) -> WalError {
        match self {
            WalError::Decode(problem) => WalError::Record { problem, lsn },
            other => other,
        }
    }
}

/// What a stream of WAL can get wrong (spec wal.md 1.4, 1.7).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamProblem {
    #[error("invalid xlog page header: xlp_magic={got:#06X}, expected {want:#06X}")]
    Magic { got: u16, want: u16 },
    #[error("invalid xlog page header: xlp_pageaddr={got}, expected {want}")]
    PageAddress { got: Lsn, want: Lsn },
    #[error("invalid xlog page header: unexpected XLP_FIRST_IS_CONTRECORD")]
    UnexpectedContrecord,
    #[error("invalid xlog page header: xlp_rem_len={0}, but it's not a contrecord")]
    UnexpectedRemLen(u32),
    #[error("invalid xlog page header: XLP_FIRST_IS_CONTRECORD expected, not found")]
    MissingContrecord,
    #[error("invalid xlog page header: xlp_rem_len={got}, expected {want}")]
    RemLen { got: u32, want: u32 },
    #[error("invalid xlog page header: xlp_sysid={got}, expected {want}; HINT: this WAL is of another cluster")]
    SystemIdentifier { got: u64, want: u64 },
    #[error("invalid xlog page header: xlp_seg_size={0}, only 16777216 is supported")]
    SegmentSize(u32),
    #[error("invalid xlog page header: xlp_xlog_blcksz={0}, only 8192 is supported")]
    BlockSize(u32),
    #[error("invalid xl_tot_len {0}")]
    TotalLength(u32),
    #[error("WAL record crc mismatch")]
    Crc,
    #[error("invalid xl_prev {got}, expected {want}")]
    Prev { got: Lsn, want: Lsn },
    #[error("invalid xl_prev {got}, expected a position before the record")]
    PrevNotBefore { got: Lsn },
    #[error("a record begun at {start} was overwritten, but what follows does not say so")]
    NotOverwriteContrecord { start: Lsn },
    #[error("a record begun at {start} was overwritten, but what follows names {got}")]
    OverwriteContrecord { start: Lsn, got: Lsn },
}

/// Little-endian reads that never panic: WAL may be cut or damaged anywhere.
pub(crate) mod le {
    use super::WalError;

    fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], WalError> {
        let end = at.saturating_add(N);
        match bytes.get(at..end).and_then(|b| b.try_into().ok()) {
            Some(array) => Ok(array),
            None => Err(WalError::Decode(format!("{} bytes, {end} needed", bytes.len()))),
        }
    }

    pub fn u8(bytes: &[u8], at: usize) -> Result<u8, WalError> {
        Ok(array::<1>(bytes, at)?[0])
    }

    pub fn u16(bytes: &[u8], at: usize) -> Result<u16, WalError> {
        Ok(u16::from_le_bytes(array(bytes, at)?))
    }

    pub fn u32(bytes: &[u8], at: usize) -> Result<u32, WalError> {
        Ok(u32::from_le_bytes(array(bytes, at)?))
    }

    pub fn u64(bytes: &[u8], at: usize) -> Result<u64, WalError> {
        Ok(u64::from_le_bytes(array(bytes, at)?))
    }
}
