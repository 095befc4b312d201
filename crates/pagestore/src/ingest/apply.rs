//! The frequent records, which never leave Rust: sizes and gaps of relations, visibility-map clears, transaction
//! status, multixacts, the checkpoint value (spec wal.md 4.3, 5, 6).

use pagecore::redo;
use pagecore::value::{Record, Value};
use pagecore::wal::interpret::HEAP_BLOCKS_PER_VM_PAGE;
use pagecore::wal::metadata::{ClearVmBits, MetadataRecord, MultiXactCreate, XactEnd};
use pagecore::wal::DecodedRecord;
use pagecore::{Flavour, Key, Lsn, RelTag, SlruKind, BLCKSZ};

use super::{IngestError, IngestTarget, Writer};

const PAGES_PER_SLRU_SEGMENT: u32 = 32;
/// Transactions whose status one CLOG page holds.
const XIDS_PER_CLOG_PAGE: u32 = 32_768;
/// Multixacts whose offset one page holds.
const MULTIXACTS_PER_OFFSETS_PAGE: u32 = 2_048;
/// Members that one page holds: 409 groups of four, and a rest that stays empty.
const MEMBERS_PER_PAGE: u32 = 1_636;

const XLOG_NEXTOID: u8 = 0x30;

/// Gaps are stored in pieces of so many blocks, so that a wide one does not fill memory with entries.
const GAP_ENTRIES_MAX: usize = if cfg!(test) { 1 << 12 } else { 1 << 16 };

/// How the blocks of a record lie to the sizes of their forks.
pub(super) enum Sizes {
    Enough,
    TooSmall,
    /// This fork does not exist.
    Missing(RelTag),
}

/// The key of a page of an SLRU.
pub(super) fn slru_page_key(kind: SlruKind, page: u32) -> Key {
    Key::slru_block(kind, page / PAGES_PER_SLRU_SEGMENT, page % PAGES_PER_SLRU_SEGMENT)
}

impl<T: IngestTarget> Writer<T> {
    /// Size of a fork; none if it does not exist.
    pub(super) fn rel_size(&mut self, rel: RelTag) -> Result<Option<u32>, IngestError> {
        if let Some(blocks) = self.modification.last_known_size(&rel) {
            return Ok(Some(blocks));
        }
        if let Some(known) = self.modification.known_size(&rel) {
            if let Some(blocks) = known {
                self.modification.look_at(rel, blocks);
            }
            return Ok(known);
        }
        // What is not known here has not been written since the last commit.
        let blocks = self.target.rel_size(rel, self.target.last_record_lsn())?;
        self.modification.learn_size(rel, blocks);
        Ok(blocks)
    }

    /// Compares the blocks of a record with the sizes of their forks.
    pub(super) fn look_up_sizes(&mut self, lsn: Lsn, record: &DecodedRecord<'_>) -> Result<Sizes, IngestError> {
        let shard = self.interpreter.shard;
        let mut sizes = Sizes::Enough;
        for block in &record.blocks {
            let key = Key::rel_block(block.rel, block.block);
            self.interpreter.check_key(lsn, &key)?;
            // Only shard 0 observes blocks of others.
            if !shard.is_shard_zero() && !shard.is_local(&key) {
                continue;
            }
            match self.rel_size(block.rel)? {
                None => return Ok(Sizes::Missing(block.rel)),
                Some(blocks) if block.block >= blocks => sizes = Sizes::TooSmall,
                Some(_) => {}
            }
        }
        Ok(sizes)
    }

    /// Extends relations to the blocks of a record and fills gaps with zeros (spec wal.md 4.3). All forks exist.
    pub(super) fn extend_relations(&mut self, lsn: Lsn, record: &DecodedRecord<'_>) -> Result<(), IngestError> {
        let shard = self.interpreter.shard;
        for block in &record.blocks {
            if !shard.is_shard_zero() && !shard.is_local(&Key::rel_block(block.rel, block.block)) {
                continue;
            }
            let old = self.rel_size(block.rel)?.unwrap_or(0);
            if block.block < old {
                continue;
            }
            for gap in old..block.block {
                let key = Key::rel_block(block.rel, gap);
                // A value of the same record wins over the zeros.
                let has_value = record.blocks.iter().any(|b| b.rel == block.rel && b.block == gap);
                if shard.is_local(&key) && !has_value {
                    self.modification.put_zero_page(key, lsn)?;
                    if self.modification.batch.entries.len() >= GAP_ENTRIES_MAX {
                        self.store_values()?;
                    }
                }
            }
            self.modification.set_size(block.rel, lsn, block.block + 1)?;
        }
        Ok(())
    }

    /// Before a base copy is consistent: a page that the record changes and that is not there (spec wal.md 9.3).
    pub(super) fn missing_slru_page(
        &mut self,
        record: &MetadataRecord<'_>,
    ) -> Result<Option<(SlruKind, u32)>, IngestError> {
        if !self.interpreter.shard.is_shard_zero() {
            return Ok(None);
        }
        let mut pages = Vec::new();
        match record {
            MetadataRecord::XactEnd(end) => {
                pages.extend(end.xids().map(|xid| (SlruKind::Clog, xid / XIDS_PER_CLOG_PAGE)));
            }
            MetadataRecord::MultiXactCreate(create) => {
                pages.push((SlruKind::MultiXactOffsets, create.multi / MULTIXACTS_PER_OFFSETS_PAGE));
                let members = (0..create.len()).map(|i| create.offset.wrapping_add(i) / MEMBERS_PER_PAGE);
                pages.extend(members.map(|page| (SlruKind::MultiXactMembers, page)));
            }
            _ => {}
        }
        pages.dedup();
        for (kind, page) in pages {
            let size = self.slru_size(kind, page / PAGES_PER_SLRU_SEGMENT)?;
            if size.is_none_or(|blocks| blocks <= page % PAGES_PER_SLRU_SEGMENT) {
                return Ok(Some((kind, page)));
            }
        }
        Ok(None)
    }

    /// Size of an SLRU segment; none if the directory does not know it.
    fn slru_size(&mut self, kind: SlruKind, segno: u32) -> Result<Option<u32>, IngestError> {
        if let Some(known) = self.modification.known_slru_size(kind, segno) {
            return Ok(known);
        }
        let lsn = self.target.last_record_lsn();
        let directory = self.target.get(Key::slru_dir(kind), lsn)?.unwrap_or_default();
        // Directory: u64 count, then big-endian u32 segment numbers in any order (spec keyspace.md 5.6).
        let segments = directory.get(8..).unwrap_or_default();
        let exists = segments.chunks_exact(4).any(|n| n == segno.to_be_bytes());
        let size = if exists { self.target.get(Key::slru_segment_size(kind, segno), lsn)? } else { None };
        let blocks = size.as_deref().and_then(|b| b.first_chunk::<4>()).map(|b| u32::from_le_bytes(*b));
        self.modification.learn_slru_size(kind, segno, blocks);
        Ok(blocks)
    }

    /// Applies what is Rust's of a metadata record.
    pub(super) fn apply(&mut self, lsn: Lsn, bytes: &[u8], record: &MetadataRecord<'_>) -> Result<(), IngestError> {
        match record {
            MetadataRecord::ClearVmBits(clear) => self.clear_vm_bits(lsn, clear),
            MetadataRecord::XactEnd(end) => self.set_transaction_status(lsn, end),
            MetadataRecord::MultiXactCreate(create) => self.create_multixact(lsn, bytes, create),
            MetadataRecord::RunningXacts { oldest_running_xid } => {
                self.checkpoint.set_oldest_active_xid(*oldest_running_xid);
                self.checkpoint_changed = true;
                Ok(())
            }
            MetadataRecord::Xlog { info: XLOG_NEXTOID, data } => {
                let Some(oid) = data.first_chunk::<4>().map(|b| u32::from_le_bytes(*b)) else {
                    return Err(self.refuse(lsn, format!("next oid of {} bytes", data.len())));
                };
                self.checkpoint_changed |= self.checkpoint.next_oid() != oid;
                self.checkpoint.set_next_oid(oid);
                Ok(())
            }
            // The others have no effect, or are Python's.
            _ => Ok(()),
        }
    }

    fn put_record(&mut self, key: Key, lsn: Lsn, record: Record<'_>) -> Result<(), IngestError> {
        let value = Value::Record(record);
        Ok(self.modification.put(key, lsn, false, |raw| value.encode_into(raw))?)
    }

    /// Clears bits of map pages that the record does not register (spec wal.md 5.3).
    ///
    /// Blocks beyond the map's end are left alone: PostgreSQL has had bugs that clear what does not exist, and pages
    /// that do not exist have no bits set.
    fn clear_vm_bits(&mut self, lsn: Lsn, clear: &ClearVmBits) -> Result<(), IngestError> {
        let size = self.rel_size(clear.vm_rel)?.unwrap_or(0);
        let mut ignored = 0;
        let mut map_block = |heap_block: Option<u32>| {
            let block = heap_block? / HEAP_BLOCKS_PER_VM_PAGE;
            if block >= size {
                ignored += 1;
                return None;
            }
            Some(block)
        };
        let (new_block, old_block) = (map_block(clear.new_heap_block), map_block(clear.old_heap_block));
        self.ignored_vm_clears += ignored;
        let flags = clear.flags;
        if let (Some(new_block), true) = (new_block, new_block == old_block) {
            let (new_heap_block, old_heap_block) = (clear.new_heap_block, clear.old_heap_block);
            let record = Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags };
            return self.put_record(Key::rel_block(clear.vm_rel, new_block), lsn, record);
        }
        if let Some(block) = new_block {
            let record =
                Record::ClearVisibilityMapFlags { new_heap_block: clear.new_heap_block, old_heap_block: None, flags };
            self.put_record(Key::rel_block(clear.vm_rel, block), lsn, record)?;
        }
        if let Some(block) = old_block {
            let record =
                Record::ClearVisibilityMapFlags { new_heap_block: None, old_heap_block: clear.old_heap_block, flags };
            self.put_record(Key::rel_block(clear.vm_rel, block), lsn, record)?;
        }
        Ok(())
    }

    /// One CLOG record for each page, that of the main transaction first (spec wal.md 5.2, step 1).
    fn set_transaction_status(&mut self, lsn: Lsn, end: &XactEnd<'_>) -> Result<(), IngestError> {
        if !self.interpreter.shard.is_shard_zero() {
            return Ok(());
        }
        let page_of = |xid: u32| xid / XIDS_PER_CLOG_PAGE;
        let mut xids = std::mem::take(&mut self.xids);
        xids.clear();
        xids.extend(end.xids());
        let first = page_of(end.xid);
        if xids.iter().all(|xid| page_of(*xid) == first) {
            self.xids = self.put_clog_record(lsn, first, end, xids)?;
            return Ok(());
        }
        // A page must have one record only: of two at one LSN the later would win. Valid WAL never comes back to a
        // page, so this order is the record's own.
        xids.sort_by_key(|xid| page_of(*xid).wrapping_sub(first));
        for on_page in xids.chunk_by(|a, b| page_of(*a) == page_of(*b)) {
            self.put_clog_record(lsn, page_of(on_page[0]), end, on_page.to_vec())?;
        }
        self.xids = xids;
        Ok(())
    }

    /// Gives the list back, so that its memory is used again.
    fn put_clog_record(
        &mut self,
        lsn: Lsn,
        page: u32,
        end: &XactEnd<'_>,
        xids: Vec<u32>,
    ) -> Result<Vec<u32>, IngestError> {
        let record = if end.kind.is_commit() {
            Record::ClogSetCommitted { xids, timestamp: end.time }
        } else {
            Record::ClogSetAborted { xids }
        };
        let record = self.put_slru_record(SlruKind::Clog, page, lsn, record)?;
        match record {
            Record::ClogSetCommitted { xids, .. } | Record::ClogSetAborted { xids } => Ok(xids),
            _ => Ok(Vec::new()),
        }
    }

    /// Writes a change of an SLRU page, and gives the change back.
    ///
    /// A page that was made for this very record (spec wal.md 9.3) has zeros at the same LSN, where there can be only
    /// one value: then the page with the change replaces them.
    fn put_slru_record<'a>(
        &mut self,
        kind: SlruKind,
        page: u32,
        lsn: Lsn,
        record: Record<'a>,
    ) -> Result<Record<'a>, IngestError> {
        let key = slru_page_key(kind, page);
        if self.fresh_pages.contains(&key) {
            let context = redo::Context {
                major: self.interpreter.major,
                flavour: self.interpreter.flavour,
                hint_bits_logged: false,
            };
            let mut image = vec![0; BLCKSZ];
            redo::apply(&context, key, &mut image, lsn, &record)
                .map_err(|error| self.refuse(lsn, format!("new page {key}: {error}")))?;
            self.modification.replace_image(key, lsn, &image)?;
            return Ok(record);
        }
        let value = Value::Record(record);
        self.modification.put(key, lsn, false, |raw| value.encode_into(raw))?;
        match value {
            Value::Record(record) => Ok(record),
            Value::Image(_) => Err(self.refuse(lsn, "a record became an image".to_string())),
        }
    }

    /// Offsets and members of a new multixact (spec wal.md 5.6, stock.md 2).
    fn create_multixact(&mut self, lsn: Lsn, bytes: &[u8], create: &MultiXactCreate<'_>) -> Result<(), IngestError> {
        if self.interpreter.shard.is_shard_zero() {
            let record = match self.interpreter.flavour {
                // Redo also writes the next multixact's offset, which recent servers insist on.
                Flavour::Stock => Record::Postgres { will_init: false, record: bytes.into() },
                Flavour::Neon => Record::MultixactOffsetCreate { multi: create.multi, offset: create.offset },
            };
            let page = create.multi / MULTIXACTS_PER_OFFSETS_PAGE;
            self.put_slru_record(SlruKind::MultiXactOffsets, page, lsn, record)?;
            self.put_members(lsn, create)?;
        }
        let next_offset = create.offset.wrapping_add(create.len());
        self.checkpoint_changed |= self.checkpoint.update_next_multixid(create.multi.wrapping_add(1), next_offset);
        let latest = |a: u32, b: u32| if pagecore::wal::checkpoint::is_after(b, a) { b } else { a };
        if let Some(xid) = create.members().map(|(xid, _)| xid).reduce(latest) {
            self.checkpoint_changed |= self.checkpoint.update_next_xid(xid);
        }
        Ok(())
    }

    /// One record for each page that members lie on; offsets wrap at 2^32.
    fn put_members(&mut self, lsn: Lsn, create: &MultiXactCreate<'_>) -> Result<(), IngestError> {
        let mut members = create.members().peekable();
        let mut offset = create.offset;
        while members.peek().is_some() {
            let page = offset / MEMBERS_PER_PAGE;
            let first = offset;
            let mut on_page = Vec::new();
            while offset / MEMBERS_PER_PAGE == page {
                let Some(member) = members.next() else { break };
                on_page.push(member);
                offset = offset.wrapping_add(1);
            }
            let record = Record::MultixactMembersCreate { offset: first, members: on_page };
            self.put_slru_record(SlruKind::MultiXactMembers, page, lsn, record)?;
        }
        Ok(())
    }
}
