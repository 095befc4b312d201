//! Where pages come from: the narrow door to a timeline's data.
//!
//! Everything here may block for a disk read, a redo process or a download, so it is called on a connection's own
//! thread, never on a tokio worker. All methods are safe to call from many threads.

use std::any::Any;

use bytes::Bytes;
use pagecore::{Key, Lsn, RelTag, SlruKind};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The timeline is shutting down; the client is told to go elsewhere.
    #[error("timeline is shutting down")]
    Stopped,
    /// There is nothing to be had at that LSN, and the client is told why.
    #[error("{0}")]
    Refused(String),
    /// Records could not be replayed: suspected corruption. The text is for the log.
    #[error("{0}")]
    Redo(String),
    /// Missing key, corrupt layer: the text is for the log.
    #[error("{0}")]
    Failed(String),
}

/// At which LSN to read. `latest` if the client asked for "latest": only then may a cache of latest relation sizes
/// be filled (spec page-service.md 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadAt {
    pub lsn: Lsn,
    pub latest: bool,
}

/// Keeps garbage collection from removing layers below the cutoff that was read after taking it.
pub type GcHold = Option<Box<dyn Any + Send>>;

pub trait PageSource: Send + Sync + 'static {
    fn last_record_lsn(&self) -> Lsn;
    fn disk_consistent_lsn(&self) -> Lsn;
    /// The applied GC cutoff: reads below it are refused unless leased.
    fn gc_cutoff(&self) -> Lsn;

    /// Take before reading the cutoff, keep until the read is done.
    fn hold_gc(&self) -> GcHold {
        None
    }

    /// Calls `wake` once when `last_record_lsn >= lsn`, at once if that holds already; drops it uncalled on shutdown.
    fn on_lsn(&self, lsn: Lsn, wake: Box<dyn FnOnce() + Send>);

    /// False also for an unknown tablespace or database.
    fn rel_exists(&self, rel: RelTag, at: ReadAt) -> Result<bool, ReadError>;
    /// In blocks; none if the fork does not exist.
    fn rel_size(&self, rel: RelTag, at: ReadAt) -> Result<Option<u32>, ReadError>;
    /// Sum of the sizes of all forks of all relations, in blocks; an unknown database is an error.
    fn db_size(&self, spcnode: u32, dbnode: u32, at: ReadAt) -> Result<u64, ReadError>;
    /// All blocks of a segment as stored (CLOG blocks may have a tail of 8 bytes); a missing segment is an error.
    fn slru_segment(&self, kind: SlruKind, segno: u32, at: ReadAt) -> Result<Vec<Bytes>, ReadError>;
    /// One vectored read. Pushes one result of 8192 bytes per key, in order; a key may come twice, but never at two
    /// LSNs. A failing key does not fail its neighbours.
    fn get_pages(&self, keys: &[(Key, Lsn)], pages: &mut Vec<Result<Bytes, ReadError>>);
}
