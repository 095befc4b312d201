//! The seam to the WAL redo process (spec walredo.md 1-3): for records that `pagecore::redo` does not know, or for all of them.

use std::time::Duration;

use pagecore::{Key, Lsn, BLCKSZ};

/// Why the redo process gave no page.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RedoProcessError {
    /// It cannot be started, for this version or now: nothing is wrong with the data.
    #[error("{0}")]
    Unavailable(String),
    /// It refused the records, died or timed out.
    #[error("{0}")]
    Failed(String),
}

/// Which engine replays PostgreSQL's records. Records of other kinds, and pages that are no blocks of relations, are always
/// replayed natively: the process knows neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedoMode {
    /// The process gets what `pagecore::redo` does not know.
    #[default]
    NativeFirst,
    /// The process gets everything.
    ProcessOnly,
}

/// Replays PostgreSQL records with PostgreSQL's own code. Records are complete WAL records with the LSN of their end,
/// ascending, above the base page's LSN; without a base page the first one initialises the page.
pub trait RedoProcess: Send + Sync {
    fn redo(
        &self,
        key: Key,
        base: Option<(Lsn, &[u8])>,
        records: &[(Lsn, &[u8])],
        major: u8,
    ) -> Result<[u8; BLCKSZ], RedoProcessError>;

    fn mode(&self) -> RedoMode {
        RedoMode::NativeFirst
    }

    /// Takes note of a run of records that was replayed natively.
    fn note_native(&self, _took: Duration) {}
}
