//! What `WalIngest` writes to: the engine's store of a timeline, or one in Python.

use std::sync::Arc;

use bytes::Bytes;
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity};
use pagestore::ingest::{IngestTarget, OpenLayerExtent};
use pagestore::{StoreError, WriteBatch};
use pyo3::prelude::*;

use crate::python_store::PythonTarget;
use crate::store::TimelineStore;

pub enum Target {
    Store(Arc<pagestore::TimelineStore>),
    Python(Box<PythonTarget>),
}

impl Target {
    pub fn of(store: &Bound<'_, PyAny>) -> PyResult<Target> {
        match store.cast::<TimelineStore>() {
            Ok(store) => Ok(Target::Store(Arc::clone(&store.get().store))),
            Err(_) => Ok(Target::Python(Box::new(PythonTarget::new(store)?))),
        }
    }

    /// The exception behind an error of a target in Python.
    pub fn take_raised(&self) -> Option<PyErr> {
        match self {
            Target::Store(_) => None,
            Target::Python(target) => target.take_raised(),
        }
    }
}

/// The same call of whichever target it is.
macro_rules! either {
    ($self:ident, $target:ident => $call:expr) => {
        match $self {
            Target::Store($target) => $call,
            Target::Python($target) => $call,
        }
    };
}

impl IngestTarget for Target {
    fn shard(&self) -> ShardIdentity {
        either!(self, target => IngestTarget::shard(target.as_ref()))
    }

    fn major(&self) -> u8 {
        either!(self, target => IngestTarget::major(target.as_ref()))
    }

    fn flavour(&self) -> Flavour {
        either!(self, target => IngestTarget::flavour(target.as_ref()))
    }

    fn last_record_lsn(&self) -> Lsn {
        either!(self, target => IngestTarget::last_record_lsn(target.as_ref()))
    }

    fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        either!(self, target => IngestTarget::get(target.as_ref(), key, lsn))
    }

    fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<Bytes, StoreError>> {
        either!(self, target => IngestTarget::get_pages(target.as_ref(), keys, lsn))
    }

    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError> {
        either!(self, target => IngestTarget::rel_size(target.as_ref(), rel, lsn))
    }

    fn forget_uncommitted(&self) {
        either!(self, target => IngestTarget::forget_uncommitted(target.as_ref()));
    }

    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        either!(self, target => IngestTarget::put(target.as_ref(), batch))
    }

    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        either!(self, target => IngestTarget::commit(target.as_ref(), batch, record_lsns))
    }

    fn note_rel_size(&self, rel: RelTag, lsn: Lsn, blocks: u32) {
        either!(self, target => IngestTarget::note_rel_size(target.as_ref(), rel, lsn, blocks));
    }

    fn note_rel_dropped(&self, rel: RelTag) {
        either!(self, target => IngestTarget::note_rel_dropped(target.as_ref(), rel));
    }

    fn note_database_dropped(&self, spcnode: u32, dbnode: u32) {
        either!(self, target => IngestTarget::note_database_dropped(target.as_ref(), spcnode, dbnode));
    }

    fn open_layer_extent(&self) -> Option<OpenLayerExtent> {
        either!(self, target => IngestTarget::open_layer_extent(target.as_ref()))
    }
}
