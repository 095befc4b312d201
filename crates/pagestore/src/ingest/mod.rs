//! WAL becomes values in the open layer of one timeline (spec wal.md 4, 5; keyspace.md 11).
//!
//! ```text
//! feed ─▶ framer ─▶ decode ─▶ sizes, gaps ─▶ metadata record ─▶ block values ─▶ commit (every 100 records, 8 MiB,
//!                                                 │                              end of input, before a rare record)
//!                                                 └─▶ rare: handed to Python, which writes through the same object
//! ```
//!
//! Invariants:
//! - LSNs never go backwards; all values of a key are stored in ascending LSN order.
//! - `last_record_lsn` passes through the end of every record, after the values of that record are stored.
//! - When a rare record is handed out, everything before it is committed: the store shows the state it applies to.
//! - What a record has stored early, since it is large, is read by itself only, and from memory: after a failure in its
//!   middle the record comes again, and must find the state before it.
//! - After an error nothing more is taken: skipping a record would corrupt data silently.

mod apply;
mod modification;
mod rare;
mod store_target;
mod target;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use pagecore::wal::{CheckPoint, DecodedRecord, Interpreter, StreamChecks, WalError, WalFramer};
use pagecore::{Key, Lsn, RelTag, SlruKind, BLCKSZ};

use crate::StoreError;
use apply::Sizes;
use modification::{Dropped, Modification};
pub use rare::{RareDetail, RareRecord};
pub use target::{IngestTarget, OpenLayerExtent};

/// Records that are committed together at most.
const COMMIT_RECORDS: usize = 100;
/// Bytes of values above which a commit follows the record that crossed it.
const COMMIT_BYTES: usize = 8 << 20;
/// Blocks that `copy_relation` reads at once.
const COPY_BLOCKS: u32 = 256;

/// Why ingest stopped.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum IngestError {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not ingest record at {lsn}: {problem}")]
    Record { lsn: Lsn, problem: String },
    /// The caller broke a rule of the interface.
    #[error("{0}")]
    Misuse(String),
}

/// What `WalIngest::run` came back with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All complete records are taken and committed.
    NeedInput,
    /// The open layer is beyond the checkpoint distance.
    Roll,
    /// To be applied before the next call.
    Rare(Box<RareRecord>),
}

/// Everything but the framer, which lends the record's bytes meanwhile.
struct Writer<T> {
    target: Arc<T>,
    interpreter: Interpreter,
    checkpoint: CheckPoint,
    /// The checkpoint is to be written at the end of the current record.
    checkpoint_changed: bool,
    modification: Modification,
    /// End of the last record taken.
    lsn: Lsn,
    tolerant_until: Lsn,
    /// SLRU pages that Python was asked to make for the current record.
    fresh_pages: Vec<Key>,
    /// Memory for lists of transactions.
    xids: Vec<u32>,
    records: u64,
    ignored_vm_clears: u64,
    growth: Growth,
}

/// How the relations together have grown since ingest began, up to the last commit (spec read-path-compaction-gc.md
/// 16). What goes with a database is not in it, unless each fork was forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub lsn: Lsn,
    pub bytes: i64,
}

/// A record that Python is applying.
struct Pending {
    lsn: Lsn,
    /// The record, if it has to be taken once more after that: something it needs did not exist.
    again: Option<Vec<u8>>,
}

/// WAL ingest of one timeline; its only writer.
pub struct WalIngest<T: IngestTarget> {
    framer: WalFramer,
    writer: Writer<T>,
    pending: Option<Pending>,
    checkpoint_distance: u64,
    is_broken: bool,
    is_abandoned: bool,
}

/// What is fixed when ingest begins.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// Position of the first byte that is fed: the normalised end of the last record.
    pub start_lsn: Lsn,
    pub checkpoint: CheckPoint,
    pub checks: StreamChecks,
    /// Below this a base copy is not consistent yet (spec wal.md 9.3).
    pub tolerant_until: Lsn,
    /// Size in bytes, of values or of WAL, at which the open layer should be frozen.
    pub checkpoint_distance: u64,
}

impl<T: IngestTarget> WalIngest<T> {
    pub fn new(target: Arc<T>, settings: IngestSettings) -> Result<WalIngest<T>, IngestError> {
        target.forget_uncommitted();
        let interpreter = Interpreter { major: target.major(), flavour: target.flavour(), shard: target.shard() };
        Ok(WalIngest {
            framer: WalFramer::new(interpreter.major, settings.start_lsn, settings.checks)?,
            writer: Writer {
                lsn: target.last_record_lsn(),
                growth: Growth { lsn: target.last_record_lsn(), bytes: 0 },
                target,
                interpreter,
                checkpoint: settings.checkpoint,
                checkpoint_changed: false,
                modification: Modification::new(),
                tolerant_until: settings.tolerant_until,
                fresh_pages: Vec::new(),
                xids: Vec::new(),
                records: 0,
                ignored_vm_clears: 0,
            },
            pending: None,
            checkpoint_distance: settings.checkpoint_distance,
            is_broken: false,
            is_abandoned: false,
        })
    }

    /// Appends bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.framer.feed(bytes);
    }

    /// Takes records until there is a reason to pause.
    ///
    /// Raises: `IngestError`; afterwards every call fails.
    pub fn run(&mut self) -> Result<Step, IngestError> {
        if self.is_broken {
            return Err(IngestError::Misuse("ingest has failed before".to_string()));
        }
        let result = self.run_on();
        self.is_broken = result.is_err();
        result
    }

    /// Ends ingest in the middle of a record that cannot be applied: what it has stored is removed, so that the layer can
    /// be frozen, and the record come again.
    pub fn abandon(&mut self) {
        if !self.is_abandoned {
            self.is_broken = true;
            self.is_abandoned = true;
            self.writer.target.forget_uncommitted();
        }
    }

    fn run_on(&mut self) -> Result<Step, IngestError> {
        match self.pending.take() {
            Some(Pending { lsn, again: Some(bytes) }) => {
                if let Some(step) = self.take(lsn, &bytes)? {
                    return Ok(step);
                }
            }
            Some(Pending { lsn, again: None }) => {
                self.writer.finish(lsn)?;
                self.writer.commit()?;
            }
            None => {}
        }
        loop {
            if self.writer.is_commit_due() {
                self.writer.commit()?;
                if self.is_layer_full() {
                    return Ok(Step::Roll);
                }
            }
            let Some((lsn, bytes)) = self.framer.next_record()? else { break };
            match self.writer.take(lsn, bytes)? {
                Taken::Done => {}
                Taken::Rare(record) => {
                    self.pending = Some(Pending { lsn, again: None });
                    return Ok(Step::Rare(record));
                }
                Taken::Again(record) => {
                    self.pending = Some(Pending { lsn, again: Some(bytes.to_vec()) });
                    return Ok(Step::Rare(record));
                }
            }
        }
        self.writer.commit()?;
        if self.is_layer_full() {
            return Ok(Step::Roll);
        }
        Ok(Step::NeedInput)
    }

    /// Takes a record a second time.
    fn take(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<Option<Step>, IngestError> {
        let (again, record) = match self.writer.take(lsn, bytes)? {
            Taken::Done => return Ok(None),
            Taken::Rare(record) => (None, record),
            Taken::Again(record) => (Some(bytes.to_vec()), record),
        };
        self.pending = Some(Pending { lsn, again });
        Ok(Some(Step::Rare(record)))
    }

    fn is_layer_full(&self) -> bool {
        let Some(extent) = self.writer.target.open_layer_extent() else { return false };
        let wal_bytes = self.writer.lsn.0.saturating_sub(extent.lsn_start.0);
        extent.size_bytes.max(wal_bytes) >= self.checkpoint_distance
    }

    /// Makes what was applied readable. Not while a rare record is being applied: it is not complete yet.
    pub fn commit(&mut self) -> Result<(), IngestError> {
        if self.pending.is_some() {
            return Err(IngestError::Misuse("commit in the middle of a record".to_string()));
        }
        self.writer.commit()
    }

    /// End of the last record taken.
    pub fn lsn(&self) -> Lsn {
        self.writer.lsn
    }

    /// Position of the next byte that `feed` expects.
    pub fn fed_until(&self) -> Lsn {
        self.framer.fed_until()
    }

    pub fn page_tli(&self) -> Option<u32> {
        self.framer.page_tli()
    }

    pub fn records(&self) -> u64 {
        self.writer.records
    }

    pub fn ignored_vm_clears(&self) -> u64 {
        self.writer.ignored_vm_clears
    }

    pub fn growth(&self) -> Growth {
        self.writer.growth
    }

    pub fn tolerant_until(&self) -> Lsn {
        self.writer.tolerant_until
    }

    pub fn set_tolerant_until(&mut self, lsn: Lsn) {
        self.writer.tolerant_until = lsn;
    }

    pub fn checkpoint(&self) -> &CheckPoint {
        &self.writer.checkpoint
    }

    /// Replaces the checkpoint value; it is written at the LSN of the rare record, changed or not.
    pub fn set_checkpoint(&mut self, checkpoint: CheckPoint) -> Result<(), IngestError> {
        self.write_lsn()?;
        self.writer.checkpoint = checkpoint;
        self.writer.checkpoint_changed = true;
        Ok(())
    }

    fn write_lsn(&self) -> Result<Lsn, IngestError> {
        match &self.pending {
            Some(pending) => Ok(pending.lsn),
            None => Err(IngestError::Misuse("no rare record is being applied".to_string())),
        }
    }

    /// The value of a key: one written for this rare record, or the stored one.
    pub fn get(&self, key: Key) -> Result<Option<Bytes>, IngestError> {
        if key == Key::CHECKPOINT {
            return Ok(Some(Bytes::copy_from_slice(&self.writer.checkpoint.0)));
        }
        if let Some(image) = self.writer.modification.get_metadata(&key) {
            return Ok(Some(Bytes::copy_from_slice(image)));
        }
        Ok(self.writer.target.get(key, self.writer.target.last_record_lsn())?)
    }

    /// Writes an image.
    pub fn put(&mut self, key: Key, image: &[u8]) -> Result<(), IngestError> {
        let lsn = self.write_lsn()?;
        if key.is_data() {
            self.writer.modification.put(key, lsn, true, |raw| pagecore::value::encode_image(raw, image))?;
        } else {
            self.writer.modification.put_metadata(key, lsn, image)?;
        }
        self.writer.store_values_if_many()
    }

    /// Writes a value that is encoded already.
    ///
    /// Raises: `Misuse` if the bytes are no value, or a record for a key that takes only images.
    pub fn put_value(&mut self, key: Key, encoded: &[u8]) -> Result<(), IngestError> {
        use pagecore::value::Value;
        let lsn = self.write_lsn()?;
        match Value::decode(encoded) {
            Ok(Value::Image(image)) => self.put(key, &image),
            Ok(value) if key.is_data() => {
                let will_init = value.will_init();
                self.writer.modification.put(key, lsn, will_init, |raw| raw.extend_from_slice(encoded))?;
                self.writer.store_values_if_many()
            }
            Ok(_) => Err(IngestError::Misuse(format!("key {key} takes only images"))),
            Err(error) => Err(IngestError::Misuse(format!("value of key {key} does not decode: {error}"))),
        }
    }

    pub fn rel_size(&mut self, rel: RelTag) -> Result<Option<u32>, IngestError> {
        self.writer.rel_size(rel)
    }

    /// Writes the size of a fork, which exists from now on.
    pub fn set_rel_size(&mut self, rel: RelTag, blocks: u32) -> Result<(), IngestError> {
        let lsn = self.write_lsn()?;
        Ok(self.writer.modification.set_size(rel, lsn, blocks)?)
    }

    /// Takes note of a size that is stored already.
    pub fn remember_rel_size(&mut self, rel: RelTag, blocks: u32) {
        self.writer.modification.learn_size(rel, Some(blocks));
    }

    pub fn forget_rel(&mut self, rel: RelTag) -> Result<(), IngestError> {
        self.write_lsn()?;
        let blocks = match self.writer.modification.known_size(&rel) {
            Some(known) => known.unwrap_or(0),
            None => self.stored_size(rel)?,
        };
        self.writer.modification.forget_rel(rel, blocks);
        Ok(())
    }

    /// The size of a fork that the directories knew before this record, whatever they say now; 0 if it has none.
    fn stored_size(&self, rel: RelTag) -> Result<u32, IngestError> {
        let value = self.writer.target.get(Key::rel_size(rel), self.writer.target.last_record_lsn())?;
        Ok(value.as_deref().and_then(|bytes| bytes.first_chunk::<4>()).map_or(0, |bytes| u32::from_le_bytes(*bytes)))
    }

    pub fn forget_database(&mut self, spcnode: u32, dbnode: u32) -> Result<(), IngestError> {
        self.write_lsn()?;
        self.writer.modification.forget_database(spcnode, dbnode);
        Ok(())
    }

    /// Writes an image of each local block of `source` to the same block of `target`.
    ///
    /// Blocks of source and target are on the same shard, since only relation and block number are hashed.
    pub fn copy_relation(&mut self, source: RelTag, target: RelTag, blocks: u32) -> Result<(), IngestError> {
        let lsn = self.write_lsn()?;
        let (shard, read_lsn) = (self.writer.interpreter.shard, self.writer.target.last_record_lsn());
        let mut keys = Vec::with_capacity(COPY_BLOCKS as usize);
        for start in (0..blocks).step_by(COPY_BLOCKS as usize) {
            keys.clear();
            let range = start..blocks.min(start.saturating_add(COPY_BLOCKS));
            keys.extend(range.map(|block| Key::rel_block(source, block)).filter(|key| shard.is_local(key)));
            let pages = self.writer.target.get_pages(&keys, read_lsn);
            if pages.len() != keys.len() {
                return Err(IngestError::Misuse(format!("{} pages for {} keys", pages.len(), keys.len())));
            }
            for (key, page) in keys.iter().zip(pages) {
                let page = page?;
                let key = Key::rel_block(target, key.field6);
                self.writer.modification.put(key, lsn, true, |raw| pagecore::value::encode_image(raw, &page))?;
            }
            self.writer.store_values_if_many()?;
        }
        Ok(())
    }

    /// Writes the size of an SLRU segment.
    pub fn set_slru_size(&mut self, kind: SlruKind, segno: u32, blocks: u32) -> Result<(), IngestError> {
        let lsn = self.write_lsn()?;
        self.writer.modification.learn_slru_size(kind, segno, Some(blocks));
        let key = Key::slru_segment_size(kind, segno);
        Ok(self.writer.modification.put_metadata(key, lsn, &blocks.to_le_bytes())?)
    }

    pub fn forget_slru(&mut self, kind: SlruKind, segno: u32) {
        self.writer.modification.learn_slru_size(kind, segno, None);
    }
}

enum Taken {
    Done,
    /// Python applies it.
    Rare(Box<RareRecord>),
    /// Python makes something that is missing; then the record is to be taken again.
    Again(Box<RareRecord>),
}

impl<T: IngestTarget> Writer<T> {
    fn refuse(&self, lsn: Lsn, problem: String) -> IngestError {
        IngestError::Record { lsn, problem }
    }

    /// Takes one record that ends at `lsn` (spec wal.md 4.1).
    fn take(&mut self, lsn: Lsn, bytes: &[u8]) -> Result<Taken, IngestError> {
        if lsn <= self.lsn {
            let problem = format!("cannot go back to it from {}", self.lsn);
            return Err(self.refuse(lsn, problem));
        }
        let in_record = |error: WalError| error.at_record_end(lsn);
        let record = DecodedRecord::decode(self.interpreter.major, bytes).map_err(in_record)?;
        let metadata = self.interpreter.metadata(&record).map_err(in_record)?;
        let rare = |detail| {
            Box::new(RareRecord {
                lsn,
                xid: record.xid,
                rmid: record.rmid,
                info: record.info,
                origin: record.origin,
                main_data: record.main_data.to_vec(),
                detail,
            })
        };
        if let Some(metadata) = metadata.as_ref().filter(|_| lsn <= self.tolerant_until) {
            if let Some((kind, page)) = self.missing_slru_page(metadata)? {
                if self.fresh_pages.is_empty() {
                    self.commit()?;
                }
                self.fresh_pages.push(apply::slru_page_key(kind, page));
                return Ok(Taken::Again(rare(RareDetail::SlruZeroPage { kind, page, implicit: true })));
            }
        }
        let is_extending = match self.look_up_sizes(lsn, &record)? {
            Sizes::Missing(rel) => {
                self.commit()?;
                return Ok(Taken::Again(rare(RareDetail::RelationCreate { rel, implicit: true })));
            }
            Sizes::Enough => false,
            Sizes::TooSmall => true,
        };
        let detail = match &metadata {
            Some(metadata) => RareDetail::of(metadata, self.interpreter.major, self.interpreter.flavour),
            None => Ok(None),
        };
        let detail = detail.map_err(in_record)?;
        // With fresh pages that has happened, and these belong to this record.
        if detail.is_some() && self.fresh_pages.is_empty() {
            self.commit()?;
        }
        if record.xid != 0 {
            self.checkpoint_changed |= self.checkpoint.update_next_xid(record.xid);
        }
        if let Some(metadata) = &metadata {
            self.apply(lsn, bytes, metadata)?;
        }
        if is_extending {
            self.extend_relations(lsn, &record)?;
        }
        self.interpreter.blocks(lsn, bytes, &record, &mut self.modification)?;
        match detail {
            Some(detail) => Ok(Taken::Rare(rare(detail))),
            None => {
                self.finish(lsn)?;
                Ok(Taken::Done)
            }
        }
    }

    /// What follows all other effects of a record.
    fn finish(&mut self, lsn: Lsn) -> Result<(), IngestError> {
        if self.checkpoint_changed {
            self.modification.put_metadata(Key::CHECKPOINT, lsn, &self.checkpoint.0)?;
            self.checkpoint_changed = false;
        }
        self.fresh_pages.clear();
        self.modification.lsns.push(lsn);
        self.lsn = lsn;
        self.records += 1;
        Ok(())
    }

    fn is_commit_due(&self) -> bool {
        self.modification.lsns.len() >= COMMIT_RECORDS || self.modification.batch.raw.len() > COMMIT_BYTES
    }

    fn commit(&mut self) -> Result<(), IngestError> {
        if self.modification.is_empty() {
            return Ok(());
        }
        self.note_sizes();
        self.target.commit(&self.modification.batch, &self.modification.lsns)?;
        self.modification.committed();
        let grown = std::mem::take(&mut self.modification.growth_blocks);
        self.growth = Growth { lsn: self.lsn, bytes: self.growth.bytes + grown * BLCKSZ as i64 };
        for dropped in self.modification.dropped.drain(..) {
            match dropped {
                Dropped::Relation(rel) => self.target.note_rel_dropped(rel),
                Dropped::Database(spcnode, dbnode) => self.target.note_database_dropped(spcnode, dbnode),
            }
        }
        Ok(())
    }

    fn note_sizes(&self) {
        for (rel, lsn, blocks) in self.modification.resized() {
            self.target.note_rel_size(rel, lsn, blocks);
        }
    }

    /// Hands over the values without making them readable.
    fn store_values(&mut self) -> Result<(), IngestError> {
        self.note_sizes();
        self.target.put(&self.modification.batch)?;
        self.modification.stored_early();
        Ok(())
    }

    /// Keeps a record with very many values from filling memory. Only data blocks are written in such numbers.
    fn store_values_if_many(&mut self) -> Result<(), IngestError> {
        if self.modification.batch.raw.len() > COMMIT_BYTES {
            self.store_values()?;
        }
        Ok(())
    }
}
