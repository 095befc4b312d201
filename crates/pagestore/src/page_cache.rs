//! Pages as they were answered, kept so that the next read decompresses and replays nothing, or only what is newer
//! (spec read-path-compaction-gc.md 8.x, "bounded chains", in memory).
//!
//! A page is kept with two LSNs: that of the last value in it, and the one up to which it is known that no newer value
//! exists. Reads between the two are answered at once; later ones look for values above the second only. Nothing can be
//! written at or below an LSN that was read, so an entry never becomes wrong, and a read that finds nothing newer moves
//! the second LSN on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use pagecore::{Key, Lsn, BLCKSZ};
use smallvec::SmallVec;

use crate::cache::{Cache, CacheStats};
use crate::reconstruct::Page;

/// A read that replayed more records than this leaves its page, whoever reads.
pub const REPLAYED_RECORDS_MIN: usize = 16;

/// A page, or one of the CLOG with the 8 bytes of its timestamp. Nothing longer is kept.
const PAGE_BYTES_MAX: usize = BLCKSZ + 8;

/// What an entry takes, with its place in the map.
const ENTRY_BYTES: usize = PAGE_BYTES_MAX + 160;

/// A page, the LSN of the last value in it, and the LSN up to which it is the newest.
#[derive(Clone, Debug)]
pub struct KnownPage {
    pub lsn: Lsn,
    pub known_until: Lsn,
    pub bytes: Bytes,
}

impl KnownPage {
    /// From here on there may be newer values.
    pub fn open_from(&self) -> Lsn {
        Lsn(self.known_until.0.saturating_add(1))
    }
}

/// Everything about a page in one piece of memory: a hit waits for it once.
struct Entry {
    lsn: Lsn,
    known_until: AtomicU64,
    len: usize,
    page: [u8; PAGE_BYTES_MAX],
}

/// Lends the page to whoever sends it, while the entry may go.
struct Lent(Arc<Entry>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0.page[..self.0.len]
    }
}

pub struct PageCache {
    /// The first part of the key is the id of the timeline's store, unique in the process.
    pages: Cache<(u64, Key), Arc<Entry>>,
}

impl PageCache {
    pub fn new(capacity_bytes: usize) -> PageCache {
        PageCache { pages: Cache::new(capacity_bytes) }
    }

    /// The page as of some LSN not above `lsn`.
    pub fn get(&self, store: u64, key: &Key, lsn: Lsn) -> Option<KnownPage> {
        self.pages.get_with(&(store, *key), |entry| {
            (entry.lsn <= lsn).then(|| KnownPage {
                lsn: entry.lsn,
                known_until: Lsn(entry.known_until.load(Ordering::Relaxed)),
                bytes: Bytes::from_owner(Lent(Arc::clone(entry))),
            })
        })?
    }

    /// For each key the page as of its LSN, if that is known to be the newest up to there.
    pub fn get_current(&self, store: u64, keys: &[(Key, Lsn)], each: impl FnMut(Option<Bytes>)) {
        let places: SmallVec<[(u64, Key); 32]> = keys.iter().map(|(key, _)| (store, *key)).collect();
        let is_current = |i: usize, entry: &Arc<Entry>| {
            let lsn = keys[i].1;
            // The page's beginning is looked at so that it comes into the processor's cache with the others.
            let page_starts = std::hint::black_box(entry.page[256]);
            (entry.lsn <= lsn && lsn.0 <= entry.known_until.load(Ordering::Relaxed), page_starts)
        };
        let lend = |entry: &Arc<Entry>, (is_current, _): (bool, u8)| {
            is_current.then(|| Bytes::from_owner(Lent(Arc::clone(entry))))
        };
        let mut each = each;
        self.pages.get_many(&places, is_current, lend, |page| each(page.flatten()));
    }

    /// Keeps the newer of the page that is there and this one, which is the newest up to `known_until`. One that took
    /// many records outlives several that took none.
    pub fn insert(&self, store: u64, key: Key, page: &Page, known_until: Lsn) {
        let len = page.bytes.len();
        if len > PAGE_BYTES_MAX {
            return;
        }
        let lives = page.replayed.checked_ilog2().map_or(0, |n| n.div_ceil(2)) as u8;
        let mut bytes = [0; PAGE_BYTES_MAX];
        bytes[..len].copy_from_slice(&page.bytes);
        let known_until = AtomicU64::new(known_until.0);
        let entry = Arc::new(Entry { lsn: page.lsn, known_until, len, page: bytes });
        self.pages.insert_if((store, key), entry, ENTRY_BYTES, lives, |old| old.lsn < page.lsn);
    }

    /// A read found nothing newer than the page of `lsn` up to `known_until`.
    pub fn confirm(&self, store: u64, key: Key, lsn: Lsn, known_until: Lsn) {
        self.pages.get_with(&(store, key), |entry| {
            if entry.lsn == lsn {
                entry.known_until.fetch_max(known_until.0, Ordering::Relaxed);
            }
        });
    }

    pub fn stats(&self) -> CacheStats {
        self.pages.stats()
    }
}
