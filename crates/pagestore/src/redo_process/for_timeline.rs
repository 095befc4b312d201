//! A tenant's pool as one timeline's engine sees it.

use std::sync::Arc;

use pagecore::{Key, Lsn, BLCKSZ};

use super::{Attempts, PoolError, RedoPool, RedoRequest};
use crate::redo::{RedoProcess, RedoProcessError};

/// The pool, with what the timeline's source is like.
pub struct TimelineRedo {
    pool: Arc<RedoPool>,
    hint_bits_logged: bool,
}

impl TimelineRedo {
    pub fn new(pool: Arc<RedoPool>, hint_bits_logged: bool) -> TimelineRedo {
        TimelineRedo { pool, hint_bits_logged }
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
        let lsn = records.last().map_or(Lsn::INVALID, |(lsn, _)| *lsn);
        let request = RedoRequest { key, lsn, major, hint_bits_logged: self.hint_bits_logged, base, records };
        let page = self.pool.redo(&request, Attempts::ReadPage)?;
        page.as_ref().try_into().map_err(|_| RedoProcessError::Failed(format!("a page of {} bytes", page.len())))
    }
}

impl From<PoolError> for RedoProcessError {
    fn from(error: PoolError) -> RedoProcessError {
        let text = error.to_string();
        match error {
            PoolError::NoCommand { .. } | PoolError::Launch(_) | PoolError::Stopped => {
                RedoProcessError::Unavailable(text)
            }
            _ => RedoProcessError::Failed(text),
        }
    }
}
