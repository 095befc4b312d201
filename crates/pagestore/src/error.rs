//! What can go wrong in the engine. Errors are cloned, since one failed read may belong to many keys.

use std::path::Path;

use pagecore::{Key, Lsn};

/// Facts as fields; `pagecore-py` turns each variant into the class of `pageserver.errors` that says what to do.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// A key that must exist has no value: the symptom of lost data, never to be answered with a zero page.
    #[error(
        "could not find data for key {key} (shard ShardNumber({shard})), original HWM LSN {lsn}{}{detail}",
        .ancestor_lsn.map(|l| format!(", ancestor {l}")).unwrap_or_default()
    )]
    MissingKey { key: Key, shard: u8, lsn: Lsn, ancestor_lsn: Option<Lsn>, detail: String },
    #[error("Invalid LSN")]
    InvalidLsn,
    #[error("only metadata keyspace can be scanned")]
    NotSparse,
    /// What the caller names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The caller broke a rule of the interface.
    #[error("{0}")]
    Invalid(String),
    /// Bytes on disk are not what they must be; `object` names the layer file.
    #[error("layer file {object} is corrupt: {detail}")]
    Corrupt { object: String, detail: String },
    /// A stored value of a key does not decode or cannot be what it is.
    #[error("value of key {key} at lsn {lsn} is corrupt: {detail}")]
    CorruptValue { key: Key, lsn: Lsn, detail: String },
    #[error("{context} {path}: {detail}")]
    Io { context: &'static str, path: String, detail: String, errno: Option<i32> },
    /// A layer is not on this disk and could not be brought here.
    #[error("layer {layer} could not be downloaded: {detail}")]
    Download { layer: String, detail: String },
    /// A file that must not be replaced is there already.
    #[error("{path} exists already")]
    Exists { path: String },
    #[error("reconstruct a page image of key {key} at lsn {lsn}: {detail}")]
    Redo { key: Key, lsn: Lsn, detail: String },
    #[error("{detail}")]
    RedoUnavailable { key: Key, detail: String },
    #[error("wal up to {lsn} did not arrive, last record lsn is {last_record_lsn}")]
    LsnTimeout { lsn: Lsn, last_record_lsn: Lsn },
    #[error("timeline shutting down")]
    Stopped,
}

/// The same enum under the name that readers use.
pub type ReadError = StoreError;

impl StoreError {
    pub fn io(context: &'static str, path: &Path, error: &std::io::Error) -> StoreError {
        StoreError::Io {
            context,
            path: path.display().to_string(),
            detail: error.to_string(),
            errno: error.raw_os_error(),
        }
    }

    pub fn corrupt(object: &str, detail: impl ToString) -> StoreError {
        StoreError::Corrupt { object: object.to_string(), detail: detail.to_string() }
    }

    pub fn is_missing_key(&self) -> bool {
        matches!(self, StoreError::MissingKey { .. })
    }
}
