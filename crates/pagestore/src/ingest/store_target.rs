//! The real target: a timeline's store.

use bytes::Bytes;
use pagecore::key::{FSM_FORK, VM_FORK};
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity};

use super::{IngestTarget, OpenLayerExtent};
use crate::layer_map::LayerMap;
use crate::{StoreError, TimelineStore, WriteBatch};

impl IngestTarget for TimelineStore {
    fn shard(&self) -> ShardIdentity {
        TimelineStore::shard(self)
    }

    fn major(&self) -> u8 {
        self.pg_version()
    }

    fn flavour(&self) -> Flavour {
        TimelineStore::flavour(self)
    }

    fn last_record_lsn(&self) -> Lsn {
        TimelineStore::last_record_lsn(self)
    }

    fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        match TimelineStore::get(self, key, lsn) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_missing_key() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<Bytes, StoreError>> {
        self.get_vectored(&keys.iter().map(|key| (*key, lsn)).collect::<Vec<_>>())
    }

    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError> {
        // Clients are told that an absent map has no blocks; here it has to be created before it gets one.
        if matches!(rel.forknum, FSM_FORK | VM_FORK) && !self.rel_exists(rel, lsn)? {
            return Ok(None);
        }
        TimelineStore::rel_size(self, rel, lsn)
    }

    fn forget_uncommitted(&self) {
        let writer = self.writer();
        let last = TimelineStore::last_record_lsn(self);
        if let Some(open) = self.map().open.as_ref().filter(|open| open.max_lsn() > last) {
            open.forget_above(last);
            self.rel_size_cache().clear();
            if open.is_empty() {
                // A layer that holds nothing has no end. The change itself cannot fail.
                let _ = self.change_map(|map| Ok((LayerMap { open: None, ..map.clone() }, ())));
            }
        }
        drop(writer);
    }

    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.put_batch(batch)
    }

    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        TimelineStore::commit(self, batch, record_lsns)
    }

    fn note_rel_size(&self, rel: RelTag, lsn: Lsn, blocks: u32) {
        self.rel_size_cache().set(rel, lsn, blocks);
    }

    fn note_rel_dropped(&self, rel: RelTag) {
        self.rel_size_cache().forget(&rel);
    }

    fn note_database_dropped(&self, spcnode: u32, dbnode: u32) {
        self.rel_size_cache().forget_database(spcnode, dbnode);
    }

    fn open_layer_extent(&self) -> Option<OpenLayerExtent> {
        self.open_layer().map(|open| OpenLayerExtent { lsn_start: open.lsn_start, size_bytes: open.size_bytes })
    }
}
