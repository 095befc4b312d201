//! The WAL redo process: PostgreSQL itself, spoken to over a pipe, for records that `pagecore::redo` does not know
//! (spec walredo.md 1-4).
//!
//! A chain of records goes in, a page comes out. Each tenant has a [`RedoPool`] that starts a process when the first chain
//! arrives, shares it among all readers, and replaces it after any error: a process that once answered wrongly, late or not
//! at all is never asked again. What the process is (an unmodified PostgreSQL with our extension, or Neon's
//! `postgres --wal-redo`) is a [`RedoCommand`] that somebody else decides; both speak the same protocol.
//!
//! ```text
//!   readers ──▶ RedoPool::redo ──▶ Process::exchange ── stdin section ──▶  postgres
//!                  │ retries            │                                     │
//!                  └ replaces           └──────────── stdout section ◀────────┘
//!                                       stderr ──▶ log      watchdog ──▶ SIGKILL at the deadline
//! ```

mod answer;
mod for_timeline;
mod metrics;
mod pool;
mod process;
mod scratch;
mod wire;

use std::path::PathBuf;

use pagecore::{Key, Lsn};

pub use for_timeline::TimelineRedo;
pub use metrics::{Histogram, HistogramSnapshot, RedoMetrics, StopCause};
pub use pool::RedoPool;

/// A page to be made by replaying records over a base image (or over nothing, if the first record makes the page).
#[derive(Clone, Copy, Debug)]
pub struct RedoRequest<'a> {
    /// A relation block.
    pub key: Key,
    /// The LSN that was asked for; for messages only.
    pub lsn: Lsn,
    /// PostgreSQL major version of the WAL.
    pub major: u8,
    /// The source logs hint bits (data checksums or `wal_log_hints`): HEAP2_VISIBLE sets the heap page's LSN.
    pub hint_bits_logged: bool,
    /// LSN and 8192 bytes.
    pub base: Option<(Lsn, &'a [u8])>,
    /// End LSN and bytes of each record, ascending, all newer than the base image.
    pub records: &'a [(Lsn, &'a [u8])],
}

/// Who asks, which decides how often it is tried (spec walredo.md 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    ReadPage,
    LegacyCompaction,
    GcCompaction,
}

impl Attempts {
    /// Tries in all.
    pub fn tries(self) -> u32 {
        match self {
            Attempts::ReadPage => 3,
            Attempts::LegacyCompaction => 2,
            Attempts::GcCompaction => 1,
        }
    }

    /// The words for it in messages.
    pub fn name(self) -> &'static str {
        match self {
            Attempts::ReadPage => "read page",
            Attempts::LegacyCompaction => "legacy compaction",
            Attempts::GcCompaction => "gc compaction",
        }
    }
}

/// How to start a process. Plain data, made by the owner of the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedoCommand {
    /// Program and arguments. `{scratch}` in an argument becomes the path of this process's own copy of the template,
    /// `{tenant}` the tenant.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The user to run as, if not ours.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// A directory of which every process gets a copy, beside it and owned by `uid`.
    pub scratch_template: Option<PathBuf>,
    /// It understands heap records in the layouts of Neon's computes; an unmodified PostgreSQL would misread them.
    pub knows_neon_records: bool,
}

/// Says how to start a process for a PostgreSQL major version and a source that logs hint bits or not; an error is the reason
/// why there is none. Asked before each start, so settings may change; must not call back into the pool.
pub type CommandSource = Box<dyn Fn(u8, bool) -> Result<RedoCommand, String> + Send + Sync>;

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    #[error("invalid WAL redo request with no records")]
    NoRecords,
    #[error("invalid record: {0} is not a relation block")]
    NotARelationBlock(Key),
    #[error("invalid WAL redo request: base image of {0} bytes")]
    BaseLength(usize),
    #[error("invalid WAL redo request: record of {0} bytes")]
    RecordLength(usize),
    #[error("there is no WAL redo process for PostgreSQL {major}: {reason}")]
    NoCommand { major: u8, reason: String },
    #[error("the WAL redo process for PostgreSQL {major} does not know Neon's heap records; HINT: name Neon's postgres in redo_programs")]
    NotNeon { major: u8 },
    #[error("WAL redo was cancelled: the tenant is shut down")]
    Stopped,
    #[error("WAL redo timed out")]
    TimedOut,
    #[error("could not start the WAL redo process: {0}")]
    Launch(String),
    #[error("WAL redo process {pid} failed: {detail}")]
    Failed { pid: u32, detail: String },
}

impl PoolError {
    /// True if another process may do better (spec walredo.md 4.1).
    pub fn is_retriable(&self) -> bool {
        matches!(self, PoolError::TimedOut | PoolError::Launch(_) | PoolError::Failed { .. })
    }
}

/// What the pool has to tell; somebody else owns the log.
#[derive(Debug)]
pub enum RedoEvent<'a> {
    Started {
        pid: u32,
        major: u8,
    },
    Stopped {
        pid: u32,
        cause: StopCause,
    },
    /// A line on standard error without `LOG:` (spec walredo.md 2.1).
    Output {
        pid: u32,
        line: &'a str,
    },
    /// One try failed; `text` is the message of spec walredo.md 4.1.
    Failed {
        attempts: Attempts,
        text: &'a str,
    },
    /// A later try succeeded.
    Recovered {
        tries: u32,
    },
}

/// Where events go. Called from any thread; must not call back into the pool.
pub type RedoLog = Box<dyn Fn(RedoEvent<'_>) + Send + Sync>;
