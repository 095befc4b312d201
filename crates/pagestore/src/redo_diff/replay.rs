//! Applies WAL to pages with the in-process engine, one record after the other, and shows each version to a watcher.
//!
//! Beyond the blocks that a record names, some records change pages or what exists: bits of visibility maps, truncation,
//! drops, copies of databases made file by file. Those are followed here, so that later versions are right.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs::File;

use pagecore::key::{RelTag, VM_FORK};
use pagecore::page::{Page, PageBytes};
use pagecore::redo::{self, Context, RedoError};
use pagecore::value::Record;
use pagecore::wal::image::restore;
use pagecore::wal::interpret::HEAP_BLOCKS_PER_VM_PAGE;
use pagecore::wal::metadata::ClearVmBits;
use pagecore::wal::{BlockRef, DecodedRecord, Interpreter, MetadataRecord, WalError};
use pagecore::{Key, Lsn, ShardIdentity, BLCKSZ};

use super::data_files::BasePages;
use super::pages::{Entry, LastRecord, PageTable, State};
use super::RedoDiffError;

const FORKS: u8 = 4;
/// Bits of a heap block in its visibility map.
const VM_BITS: u64 = 2;
/// Storage TRUNCATE: which forks.
const TRUNCATE_HEAP: u32 = 1;
const TRUNCATE_VM: u32 = 2;

/// A record and where it is.
#[derive(Clone, Copy, Debug)]
pub struct RecordAt<'a> {
    pub start: Lsn,
    /// The LSN that pages get.
    pub end: Lsn,
    pub rmid: u8,
    /// All eight bits.
    pub info: u8,
    pub bytes: &'a [u8],
}

/// What the in-process engine made of a page.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    Page(&'a PageBytes),
    Failed(&'a RedoError),
    /// It does not know this kind of record.
    Unsupported,
    /// The record changes a page that is not known.
    WithoutBase,
}

/// One page version that the WAL describes: a block of a record.
#[derive(Clone, Copy, Debug)]
pub struct Version<'a> {
    pub record: RecordAt<'a>,
    pub block_id: u8,
    pub key: Key,
    /// None if the record makes the page, or it is not known.
    pub before: Option<&'a PageBytes>,
    pub after: After<'a>,
    /// The after-image of `wal_consistency_checking`; an error if it cannot be restored.
    pub shown: Option<Result<&'a PageBytes, &'a WalError>>,
}

/// What the watcher thinks of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// A witness has seen it, or will.
    pub compared: bool,
    /// False if the page had better go on from the after-image.
    pub agrees: bool,
}

/// Sees every record, and every page version that the records describe.
pub trait Watch {
    fn record(&mut self, record: &RecordAt<'_>);
    fn version(&mut self, version: &Version<'_>) -> Verdict;
    /// A record changed a page that it does not name: the visibility map.
    fn side_effect(&mut self, record: &RecordAt<'_>);
}

pub struct Replay {
    context: Context,
    interpreter: Interpreter,
    base: Box<dyn BasePages>,
    pub(super) pages: PageTable,
    /// Relations (main forks) that were created since the start: the base says nothing of them.
    created: HashSet<RelTag>,
    /// (tablespace, database) that were copied file by file, and from where: the base of their untouched pages.
    copies: HashMap<(u32, u32), (u32, u32)>,
    work: Vec<u8>,
}

impl Replay {
    /// Nothing has been applied yet; `base` gives the pages there are before, `scratch` keeps those that change.
    pub fn new(context: Context, base: Box<dyn BasePages>, scratch: File) -> Replay {
        let interpreter =
            Interpreter { major: context.major, flavour: context.flavour, shard: ShardIdentity::UNSHARDED };
        let (created, copies) = (HashSet::new(), HashMap::new());
        Replay { context, interpreter, base, pages: PageTable::new(scratch), created, copies, work: Vec::new() }
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The page as it is now; none if there is none, or it is not known.
    pub fn page(&mut self, key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        let entry = self.entry(key)?;
        self.read(entry.state)
    }

    /// Applies a complete record.
    pub fn record(&mut self, start: Lsn, end: Lsn, bytes: &[u8], watch: &mut impl Watch) -> Result<(), RedoDiffError> {
        let decoded = DecodedRecord::decode(self.context.major, bytes).map_err(|error| error.at_record_end(end))?;
        let metadata = self.interpreter.metadata(&decoded).map_err(|error| error.at_record_end(end))?;
        let record = RecordAt { start, end, rmid: decoded.rmid, info: decoded.info, bytes };
        watch.record(&record);
        for block in &decoded.blocks {
            self.block(&record, block, watch)?;
        }
        match metadata {
            Some(metadata) => self.follow(&record, &metadata, watch),
            None => Ok(()),
        }
    }

    fn block(
        &mut self,
        record: &RecordAt<'_>,
        block: &BlockRef<'_>,
        watch: &mut impl Watch,
    ) -> Result<(), RedoDiffError> {
        let key = Key::rel_block(block.rel, block.block);
        self.interpreter.check_key(record.end, &key)?;
        let entry = self.entry(&key)?;
        let makes_page = block.initialises();
        let before = if makes_page { None } else { self.page_before(&key, entry.state)? };
        let value = Record::Postgres { will_init: makes_page, record: Cow::Borrowed(record.bytes) };
        let mut work = std::mem::take(&mut self.work);
        work.clear();
        let failure;
        let after = if !redo::can_apply(&self.context, &value) {
            After::Unsupported
        } else if before.is_none() && !makes_page {
            After::WithoutBase
        } else {
            before.iter().for_each(|page| work.extend_from_slice(&page[..]));
            failure = redo::apply(&self.context, key, &mut work, record.end, &value).err();
            match (&failure, work.as_slice().try_into()) {
                (Some(error), _) => After::Failed(error),
                (None, Ok(page)) => After::Page(page),
                // An image for a page of another size is refused by the engine itself.
                (None, Err(_)) => After::Unsupported,
            }
        };
        let image = block.image.map(|image| restore(&image));
        let shown = image.as_ref().filter(|_| !block.apply_image).map(|image| image.as_deref());
        let verdict = watch.version(&Version {
            record: *record,
            block_id: block.id,
            key,
            before: before.as_deref(),
            after,
            shown,
        });

        let last = Some(LastRecord {
            rmid: record.rmid,
            info: record.info,
            start: record.start,
            end: record.end,
            compared: verdict.compared,
        });
        let has_hole = block.image.is_some_and(|image| image.hole_length > 0);
        let lacks_bits = key.field5 == VM_FORK && if makes_page { has_hole } else { entry.lacks_bits };
        let next = match (after, &image) {
            (After::Page(page), _) if verdict.agrees => {
                let stamped = lsn_of(page) == record.end;
                let state = self.pages.write(entry.state, page)?;
                Entry { state, last, lsn_is_known: makes_page || stamped || entry.lsn_is_known, lacks_bits }
            }
            (_, Some(Ok(image))) => {
                let state = self.pages.write(entry.state, &with_lsn(image, record.end))?;
                let lacks_bits = key.field5 == VM_FORK && has_hole;
                Entry { state, last, lsn_is_known: block.apply_image, lacks_bits }
            }
            _ => Entry { last, ..Entry::new(State::Unknown) },
        };
        self.pages.set(&key, next);
        self.work = work;
        Ok(())
    }

    fn page_before(&self, key: &Key, state: State) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        match state {
            // Maps grow by pages of zeros that are never logged (spec stock.md 1).
            State::Absent if key.field5 == VM_FORK => Ok(Some(Box::new([0; BLCKSZ]))),
            state => self.read(state),
        }
    }

    fn read(&self, state: State) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        let State::At(slot) = state else { return Ok(None) };
        let mut page = Box::new([0; BLCKSZ]);
        self.pages.read(slot, &mut page)?;
        Ok(Some(page))
    }

    /// What is known of a block, the base asked if need be.
    fn entry(&mut self, key: &Key) -> Result<Entry, RedoDiffError> {
        if let Some(entry) = self.pages.get(key) {
            return Ok(entry);
        }
        let main = RelTag { forknum: 0, ..key.rel_tag() };
        let state = if self.created.contains(&main) {
            State::Absent
        } else {
            match self.base.read(&self.origin(key))? {
                Some(page) => self.pages.write(State::Unknown, &page)?,
                None if self.base.is_complete() => State::Absent,
                None => State::Unknown,
            }
        };
        let entry = Entry::new(state);
        self.pages.set(key, entry);
        Ok(entry)
    }

    /// Where an untouched page of a copied database came from. Copies of copies end at the first.
    fn origin(&self, key: &Key) -> Key {
        match self.copies.get(&(key.field2, key.field3)) {
            Some((tablespace, database)) => Key { field2: *tablespace, field3: *database, ..*key },
            None => *key,
        }
    }

    /// What a record does beyond its blocks.
    fn follow(
        &mut self,
        record: &RecordAt<'_>,
        metadata: &MetadataRecord<'_>,
        watch: &mut impl Watch,
    ) -> Result<(), RedoDiffError> {
        match metadata {
            MetadataRecord::ClearVmBits(clear) => self.clear_vm_bits(record, clear, watch)?,
            MetadataRecord::SmgrCreate { rel } if rel.forknum == 0 => self.drop_relation(rel),
            MetadataRecord::SmgrTruncate { block, spcnode, dbnode, relnode, flags } => {
                let heap = RelTag { spcnode: *spcnode, dbnode: *dbnode, relnode: *relnode, forknum: 0 };
                self.truncate(record, &heap, *block, *flags, watch)?;
            }
            MetadataRecord::XactEnd(end) => {
                for (spcnode, dbnode, relnode) in end.relations() {
                    self.drop_relation(&RelTag { spcnode, dbnode, relnode, forknum: 0 });
                }
            }
            MetadataRecord::DatabaseCreate { db, tablespace, src_db, src_tablespace } => {
                self.copy_database((*src_tablespace, *src_db), (*tablespace, *db))?;
            }
            MetadataRecord::DatabaseDrop { db, tablespaces } => {
                let tablespaces: Vec<u32> = tablespaces.iter().collect();
                self.forget_database(&tablespaces, *db);
            }
            _ => {}
        }
        Ok(())
    }

    fn drop_relation(&mut self, main: &RelTag) {
        (0..FORKS).for_each(|forknum| self.pages.drop_fork(&RelTag { forknum, ..*main }));
        // Should the number be used again, nothing of the base belongs to it.
        self.created.insert(*main);
    }

    fn forget_database(&mut self, tablespaces: &[u32], database: u32) {
        self.pages.drop_database(tablespaces, database);
        self.created.retain(|rel| rel.dbnode != database || !tablespaces.contains(&rel.spcnode));
        self.copies.retain(|(tablespace, db), _| *db != database || !tablespaces.contains(tablespace));
    }

    /// The server copied the files of a database's directory: every page is now what the source's was.
    fn copy_database(&mut self, from: (u32, u32), to: (u32, u32)) -> Result<(), RedoDiffError> {
        self.forget_database(&[to.0], to.1);
        for (key, entry) in self.pages.entries_of_database(from.0, from.1) {
            let state = match self.read(entry.state)? {
                Some(page) => self.pages.write(State::Unknown, &page)?,
                None => entry.state,
            };
            let copy = Key { field2: to.0, field3: to.1, ..key };
            self.pages.set(&copy, Entry { state, last: None, ..entry });
        }
        let created: Vec<RelTag> = self.created.iter().copied().collect();
        for rel in created.into_iter().filter(|rel| (rel.spcnode, rel.dbnode) == from) {
            self.created.insert(RelTag { spcnode: to.0, dbnode: to.1, ..rel });
        }
        let origin = self.copies.get(&from).copied().unwrap_or(from);
        self.copies.insert(to, origin);
        Ok(())
    }

    /// Pages behind the new end are gone, the map forgets about them (spec wal.md 5).
    fn truncate(
        &mut self,
        record: &RecordAt<'_>,
        heap: &RelTag,
        block: u32,
        flags: u32,
        watch: &mut impl Watch,
    ) -> Result<(), RedoDiffError> {
        if flags & TRUNCATE_HEAP != 0 {
            self.absent_from(heap, block)?;
        }
        if flags & TRUNCATE_VM != 0 {
            let map = RelTag { forknum: VM_FORK, ..*heap };
            let (page, rest) = (block / HEAP_BLOCKS_PER_VM_PAGE, u64::from(block % HEAP_BLOCKS_PER_VM_PAGE));
            self.absent_from(&map, page + u32::from(rest > 0))?;
            if rest > 0 {
                let bit = rest * VM_BITS;
                let cut = Record::TruncateVisibilityMap { byte: bit / 8, bit_offset: bit % 8 };
                self.change_map(record, &Key::rel_block(map, page), &cut, watch)?;
            }
        }
        Ok(())
    }

    /// Blocks from `first` on do not exist, also those of the base that nobody has asked for yet.
    fn absent_from(&mut self, rel: &RelTag, first: u32) -> Result<(), RedoDiffError> {
        self.pages.truncate(rel, first);
        let mut block = first;
        let mut key = Key::rel_block(*rel, block);
        while self.pages.get(&key).is_some() || self.base.read(&self.origin(&key))?.is_some() {
            if self.pages.get(&key).is_none() {
                self.pages.set(&key, Entry::new(State::Absent));
            }
            let Some(next) = block.checked_add(1) else { break };
            block = next;
            key = Key::rel_block(*rel, block);
        }
        Ok(())
    }

    fn clear_vm_bits(
        &mut self,
        record: &RecordAt<'_>,
        clear: &ClearVmBits,
        watch: &mut impl Watch,
    ) -> Result<(), RedoDiffError> {
        for heap_block in [clear.new_heap_block, clear.old_heap_block].into_iter().flatten() {
            let key = Key::rel_block(clear.vm_rel, heap_block / HEAP_BLOCKS_PER_VM_PAGE);
            let (new_heap_block, flags) = (Some(heap_block), clear.flags);
            let change = Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block: None, flags };
            self.change_map(record, &key, &change, watch)?;
        }
        Ok(())
    }

    /// Changes a page of a visibility map that the record does not name, if there is one.
    fn change_map(
        &mut self,
        record: &RecordAt<'_>,
        key: &Key,
        change: &Record<'_>,
        watch: &mut impl Watch,
    ) -> Result<(), RedoDiffError> {
        let entry = self.entry(key)?;
        let Some(page) = self.read(entry.state)? else { return Ok(()) };
        let mut work = page.to_vec();
        let fail = |problem: String| WalError::Record { problem, lsn: record.end };
        redo::apply(&self.context, *key, &mut work, record.end, change).map_err(|error| fail(error.to_string()))?;
        let page = work.as_slice().try_into().map_err(|_| fail("a page changed its size".to_string()))?;
        let state = self.pages.write(entry.state, page)?;
        let RecordAt { rmid, info, start, end, .. } = *record;
        let last = Some(LastRecord { rmid, info, start, end, compared: false });
        self.pages.set(key, Entry { state, last, ..entry });
        watch.side_effect(record);
        Ok(())
    }
}

pub(super) fn lsn_of(page: &PageBytes) -> Lsn {
    let word = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(word(0) << 32 | word(4))
}

/// An image as redo leaves it: a page that is not new gets the record's LSN.
fn with_lsn(image: &PageBytes, lsn: Lsn) -> PageBytes {
    let mut bytes = *image;
    let mut page = Page::new(&mut bytes);
    if !page.is_new() {
        page.set_lsn(lsn);
    }
    bytes
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
