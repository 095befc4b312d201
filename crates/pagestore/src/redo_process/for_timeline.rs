//! A tenant's pool as one timeline's engine sees it.

use std::sync::Arc;
use std::time::Duration;

use pagecore::wal::rmgr;
use pagecore::{Flavour, Key, Lsn, BLCKSZ};

use super::{Attempts, PoolError, RedoPool, RedoRequest};
use crate::redo::{RedoMode, RedoProcess, RedoProcessError};

/// The pool, with what the timeline's source is like.
pub struct TimelineRedo {
    pool: Arc<RedoPool>,
    hint_bits_logged: bool,
    flavour: Flavour,
    neon_until: Lsn,
    mode: RedoMode,
}

impl TimelineRedo {
    /// For WAL of an unmodified PostgreSQL, native redo first.
    pub fn new(pool: Arc<RedoPool>, hint_bits_logged: bool) -> TimelineRedo {
        TimelineRedo {
            pool,
            hint_bits_logged,
            flavour: Flavour::Stock,
            neon_until: Lsn::INVALID,
            mode: RedoMode::NativeFirst,
        }
    }

    /// For WAL of this flavour; what ends at or below `neon_until` is Neon's in any case.
    pub fn with(self, flavour: Flavour, neon_until: Lsn, mode: RedoMode) -> TimelineRedo {
        TimelineRedo { flavour, neon_until, mode, ..self }
    }

    fn is_neons(&self, lsn: Lsn) -> bool {
        self.flavour == Flavour::Neon || lsn <= self.neon_until
    }
}

impl RedoProcess for TimelineRedo {
    fn redo(
        &self,
        key: Key,
        base: Option<(Lsn, &[u8])>,
        records: &[(Lsn, &[u8])],
        major: u8,
    ) -> Result<[u8; BLCKSZ], RedoProcessError> {
        let is_neon = records.iter().any(|(lsn, record)| self.is_neons(*lsn) && has_neon_layout(major, record));
        if is_neon && !self.pool.knows_neon_records(major, self.hint_bits_logged)? {
            return Err(PoolError::NotNeon { major }.into());
        }
        let lsn = records.last().map_or(Lsn::INVALID, |(lsn, _)| *lsn);
        let request = RedoRequest { key, lsn, major, hint_bits_logged: self.hint_bits_logged, base, records };
        let page = self.pool.redo(&request, Attempts::ReadPage)?;
        page.as_ref().try_into().map_err(|_| RedoProcessError::Failed(format!("a page of {} bytes", page.len())))
    }

    fn mode(&self) -> RedoMode {
        self.mode
    }

    fn note_native(&self, took: Duration) {
        self.pool.metrics().redo_seconds.observe(took.as_secs_f64());
    }
}

/// Neon changed heap records in place up to 15, and has a resource manager of its own from 16 on (spec walredo.md 8.1).
fn has_neon_layout(major: u8, record: &[u8]) -> bool {
    match record.get(17) {
        Some(&rmgr::NEON) => true,
        Some(&(rmgr::HEAP | rmgr::HEAP2)) => major <= 15,
        _ => false,
    }
}

impl From<PoolError> for RedoProcessError {
    fn from(error: PoolError) -> RedoProcessError {
        let text = error.to_string();
        match error {
            PoolError::NoCommand { .. } | PoolError::Launch(_) | PoolError::Stopped | PoolError::NotNeon { .. } => {
                RedoProcessError::Unavailable(text)
            }
            _ => RedoProcessError::Failed(text),
        }
    }
}
