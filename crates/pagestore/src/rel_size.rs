//! Relation sizes kept in memory (spec keyspace.md 8.5). A hit also means that the relation exists.

use std::collections::HashMap;
use std::sync::RwLock;

use pagecore::{Lsn, RelTag};

use crate::cache::{read, write, Cache, QuickHash};

/// How many (LSN, relation) pairs of reads in the past are kept.
const SNAPSHOT_ENTRIES: usize = 1024;

#[derive(Default)]
struct Latest {
    sizes: HashMap<RelTag, (Lsn, u32), QuickHash>,
    /// Counts drops, so that a slow read does not bring a dropped relation back.
    drops: u64,
}

pub struct RelSizeCache {
    /// Size and the LSN from which on it holds, up to the newest record.
    latest: RwLock<Latest>,
    snapshots: Cache<(Lsn, RelTag), u32>,
}

impl Default for RelSizeCache {
    fn default() -> Self {
        RelSizeCache::new()
    }
}

impl RelSizeCache {
    pub fn new() -> RelSizeCache {
        RelSizeCache { latest: RwLock::default(), snapshots: Cache::new(SNAPSHOT_ENTRIES) }
    }

    /// The size at `lsn`, if it is known without a read.
    pub fn get(&self, rel: &RelTag, lsn: Lsn) -> Option<u32> {
        if let Some((from, blocks)) = read(&self.latest).sizes.get(rel) {
            if lsn >= *from {
                return Some(*blocks);
            }
        }
        self.snapshots.get(&(lsn, *rel))
    }

    /// Ingest has written this size at `lsn`.
    pub fn set(&self, rel: RelTag, lsn: Lsn, blocks: u32) {
        write(&self.latest).sizes.insert(rel, (lsn, blocks));
    }

    /// Ingest has dropped the relation.
    pub fn forget(&self, rel: &RelTag) {
        let mut latest = write(&self.latest);
        latest.sizes.remove(rel);
        latest.drops += 1;
    }

    /// Forgets every relation of a database, after DROP DATABASE.
    pub fn forget_database(&self, spcnode: u32, dbnode: u32) {
        let mut latest = write(&self.latest);
        latest.sizes.retain(|rel, _| (rel.spcnode, rel.dbnode) != (spcnode, dbnode));
        latest.drops += 1;
    }

    /// Forgets the newest sizes: the timeline goes on from another state.
    pub(crate) fn clear(&self) {
        let mut latest = write(&self.latest);
        latest.sizes.clear();
        latest.drops += 1;
    }

    /// To be taken before a read whose result goes to `learn_latest`.
    pub(crate) fn drops(&self) -> u64 {
        read(&self.latest).drops
    }

    /// A read at the newest record found this size, written at `lsn`.
    pub(crate) fn learn_latest(&self, rel: RelTag, lsn: Lsn, blocks: u32, drops: u64) {
        let mut latest = write(&self.latest);
        if latest.drops == drops {
            let entry = latest.sizes.entry(rel).or_insert((lsn, blocks));
            if entry.0 < lsn {
                *entry = (lsn, blocks);
            }
        }
    }

    /// A read at exactly `lsn` found this size.
    pub(crate) fn learn_snapshot(&self, rel: RelTag, lsn: Lsn, blocks: u32) {
        self.snapshots.insert((lsn, rel), blocks, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, forknum: 0 };

    #[test]
    fn a_size_holds_from_its_lsn_on() {
        let cache = RelSizeCache::new();
        cache.set(REL, Lsn(100), 5);
        assert_eq!(cache.get(&REL, Lsn(99)), None);
        assert_eq!(cache.get(&REL, Lsn(100)), Some(5));
        cache.learn_snapshot(REL, Lsn(50), 3);
        assert_eq!(cache.get(&REL, Lsn(50)), Some(3));
        assert_eq!(cache.get(&REL, Lsn(51)), None);
    }

    #[test]
    fn a_read_neither_overwrites_newer_sizes_nor_revives_dropped_relations() {
        let cache = RelSizeCache::new();
        let drops = cache.drops();
        cache.set(REL, Lsn(100), 5);
        cache.learn_latest(REL, Lsn(90), 4, drops);
        assert_eq!(cache.get(&REL, Lsn(100)), Some(5));
        cache.forget(&REL);
        cache.learn_latest(REL, Lsn(100), 5, drops);
        assert_eq!(cache.get(&REL, Lsn(100)), None);
        cache.learn_latest(REL, Lsn(100), 5, cache.drops());
        cache.forget_database(1663, 5);
        assert_eq!(cache.get(&REL, Lsn(100)), None);
    }
}
