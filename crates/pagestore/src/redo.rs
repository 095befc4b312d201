//! The seam to the WAL redo process (spec walredo.md 1-3), for records that `pagecore::redo` does not know.

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
}
