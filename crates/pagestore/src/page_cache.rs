//! Pages that took many records to reconstruct, kept so that the next read applies only what is newer
//! (spec read-path-compaction-gc.md 8.x, "bounded chains", in memory).
//!
//! A page is kept with the LSN of the last value applied to it. It serves reads at that LSN or above, which go on
//! looking for newer values. Nothing can be written below an LSN that was read, so an entry never becomes wrong.

use bytes::Bytes;
use pagecore::{Key, Lsn};

use crate::cache::{Cache, CacheStats};

/// A read that replayed more records than this leaves its page.
pub const REPLAYED_RECORDS_MIN: usize = 16;

/// Bytes of an entry beside its page.
const ENTRY_BYTES: usize = 128;

pub struct PageCache {
    /// The first part of the key is the id of the timeline's store, unique in the process.
    pages: Cache<(u64, Key), (Lsn, Bytes)>,
}

impl PageCache {
    pub fn new(capacity_bytes: usize) -> PageCache {
        PageCache { pages: Cache::new(capacity_bytes) }
    }

    /// The page as of some LSN not above `lsn`, and that LSN.
    pub fn get(&self, store: u64, key: &Key, lsn: Lsn) -> Option<(Lsn, Bytes)> {
        self.pages.get(&(store, *key)).filter(|(page_lsn, _)| *page_lsn <= lsn)
    }

    /// Keeps the newer of the page that is there and this one.
    pub fn insert(&self, store: u64, key: Key, lsn: Lsn, page: Bytes) {
        let weight = page.len() + ENTRY_BYTES;
        self.pages.insert_if((store, key), (lsn, page), weight, |(old, _)| *old < lsn);
    }

    pub fn stats(&self) -> CacheStats {
        self.pages.stats()
    }
}
