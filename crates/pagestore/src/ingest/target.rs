//! What ingest needs of the timeline it writes to. `TimelineStore` is the real one; tests have a dictionary.

use bytes::Bytes;
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity};

use crate::{StoreError, WriteBatch};

/// The open layer, as far as the decision to close it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenLayerExtent {
    pub lsn_start: Lsn,
    pub size_bytes: u64,
}

/// A timeline that is being written. Ingest is its only writer.
pub trait IngestTarget {
    fn shard(&self) -> ShardIdentity;
    fn major(&self) -> u8;
    fn flavour(&self) -> Flavour;
    fn last_record_lsn(&self) -> Lsn;
    /// None if there is no value.
    fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, StoreError>;
    /// One answer per key, in their order.
    fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<Bytes, StoreError>>;
    /// None if the directories do not know the fork.
    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError>;
    /// Removes what an earlier ingest stored and did not commit, since it failed in between: the same WAL comes again.
    fn forget_uncommitted(&self);
    /// Stores values in the open layer without making them readable.
    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError>;
    /// Stores values and moves `last_record_lsn` through the ends of records, one by one, so that the one before the
    /// last is known too.
    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError>;
    /// The size that a fork will have from `lsn` on, for the cache of spec keyspace.md 8.5; told before the commit.
    fn note_rel_size(&self, rel: RelTag, lsn: Lsn, blocks: u32);
    /// A fork does not exist any more; told after the commit, or a read in between would bring it back.
    fn note_rel_dropped(&self, rel: RelTag);
    fn note_database_dropped(&self, spcnode: u32, dbnode: u32);
    /// None if there is no open layer.
    fn open_layer_extent(&self) -> Option<OpenLayerExtent>;
}
