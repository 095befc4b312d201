//! What the records since the last commit write, and the sizes that ingest knows (spec keyspace.md 11, wal.md 4.3).
//!
//! Values of data blocks and of everything else lie in one `WriteBatch` in the order of their LSNs. Keys that are no
//! data block can be read back before the commit; written twice at one LSN they leave one value.

use std::collections::HashMap;

use pagecore::value::encode_image;
use pagecore::wal::ValueSink;
use pagecore::{Key, Lsn, RelTag, SlruKind, BLCKSZ};

use crate::cache::QuickHash;
use crate::{Entry, StoreError, WriteBatch};

/// Length of the encoding of an image before its bytes.
const IMAGE_HEADER_LEN: usize = 12;
const _: () = assert!(IMAGE_HEADER_LEN == 4 + 8);

/// Size of a relation fork, as ingest knows it, and where its last uncommitted value lies.
#[derive(Clone, Copy, Debug)]
struct RelSize {
    blocks: u32,
    lsn: Lsn,
    /// Number of the commit that will take the value.
    commit: u64,
    entry: u32,
}

/// What the cache of relation sizes has to forget.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dropped {
    Relation(RelTag),
    Database(u32, u32),
}

/// Place of an encoded record in the batch. The end of a record identifies it.
#[derive(Clone, Copy, Debug)]
struct SharedRecord {
    lsn: Lsn,
    offset: u32,
    len: u32,
}

/// The writes since the last commit, and the sizes that outlive it.
pub(super) struct Modification {
    pub batch: WriteBatch,
    /// Ends of the records since the last commit.
    pub lsns: Vec<Lsn>,
    /// Entry of the last uncommitted value of each key that is no data block and was written by `put_metadata`.
    uncommitted: HashMap<Key, u32, QuickHash>,
    /// Images of such keys that went to the target before the commit.
    early: HashMap<Key, Vec<u8>, QuickHash>,
    /// Forks whose existence has been asked for; none: does not exist.
    sizes: HashMap<RelTag, Option<RelSize>, QuickHash>,
    /// Segments asked for, in the same way.
    slru_sizes: HashMap<(SlruKind, u32), Option<u32>, QuickHash>,
    /// The fork last looked at: runs of records on one relation are the rule.
    last_rel: Option<(RelTag, u32)>,
    /// Forks whose size was written since the last commit; may name one twice.
    resized: Vec<RelTag>,
    /// By how many blocks all forks together have grown since the last commit.
    pub growth_blocks: i64,
    /// What the records since the last commit have dropped.
    pub dropped: Vec<Dropped>,
    /// Where the batch has its page of zeros, which all gaps share.
    zero_page_at: Option<u32>,
    /// The last record's bytes, without and with will_init: the blocks of a record share them.
    last_record: [Option<SharedRecord>; 2],
    commit: u64,
}

impl Modification {
    pub fn new() -> Modification {
        Modification {
            batch: WriteBatch::default(),
            lsns: Vec::new(),
            uncommitted: HashMap::default(),
            early: HashMap::default(),
            sizes: HashMap::default(),
            slru_sizes: HashMap::default(),
            last_rel: None,
            resized: Vec::new(),
            growth_blocks: 0,
            dropped: Vec::new(),
            zero_page_at: None,
            last_record: [None; 2],
            commit: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.lsns.is_empty()
    }

    /// Forgets what is committed now, but not the sizes.
    pub fn committed(&mut self) {
        self.forget_values();
        self.early.clear();
        self.lsns.clear();
    }

    /// Forgets the values, which are stored now, but for those that `get_metadata` is asked for.
    pub fn stored_early(&mut self) {
        let mut early = std::mem::take(&mut self.early);
        for key in self.uncommitted.keys() {
            if let Some(image) = self.batch_image(key) {
                early.insert(*key, image.to_vec());
            }
        }
        self.early = early;
        self.forget_values();
    }

    fn forget_values(&mut self) {
        self.batch.clear();
        self.uncommitted.clear();
        self.resized.clear();
        self.zero_page_at = None;
        self.last_record = [None; 2];
        self.commit += 1;
    }

    /// Forks with a new size since the last commit: fork, LSN of the size, blocks.
    pub fn resized(&self) -> impl Iterator<Item = (RelTag, Lsn, u32)> + '_ {
        self.resized.iter().filter_map(|rel| match self.sizes.get(rel) {
            Some(Some(size)) => Some((*rel, size.lsn, size.blocks)),
            _ => None,
        })
    }

    fn offset(&self) -> Result<u32, StoreError> {
        u32::try_from(self.batch.raw.len()).map_err(|_| StoreError::Invalid("commit of more than 4 GiB".to_string()))
    }

    /// Appends a value that is encoded by `encode`.
    pub fn put(
        &mut self,
        key: Key,
        lsn: Lsn,
        will_init: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), StoreError> {
        let offset = self.offset()?;
        encode(&mut self.batch.raw);
        let len = self.offset()? - offset;
        self.batch.entries.push(Entry { key, lsn, offset, len, will_init });
        Ok(())
    }

    /// Writes the image of a data block, in the place of an uncommitted value of the same LSN if there is one.
    pub fn replace_image(&mut self, key: Key, lsn: Lsn, image: &[u8]) -> Result<(), StoreError> {
        let earlier = self.batch.entries.iter().rposition(|e| e.key == key && e.lsn == lsn);
        self.put(key, lsn, true, |raw| encode_image(raw, image))?;
        if let Some(earlier) = earlier {
            // In its place, since others refer to entries by their number.
            let last = self.batch.entries.len() - 1;
            self.batch.entries[earlier] = self.batch.entries[last];
            self.batch.entries.truncate(last);
        }
        Ok(())
    }

    /// Writes the image of a key that is no data block; replaces an uncommitted one of the same LSN.
    pub fn put_metadata(&mut self, key: Key, lsn: Lsn, image: &[u8]) -> Result<(), StoreError> {
        let new = self.batch.entries.len() as u32;
        self.put(key, lsn, true, |raw| encode_image(raw, image))?;
        if let Some(earlier) = self.uncommitted.get(&key).copied() {
            if self.batch.entries[earlier as usize].lsn == lsn {
                if let Some(entry) = self.batch.entries.pop() {
                    self.batch.entries[earlier as usize] = entry;
                }
                return Ok(());
            }
        }
        self.uncommitted.insert(key, new);
        Ok(())
    }

    /// The last uncommitted image of a key that is no data block.
    pub fn get_metadata(&self, key: &Key) -> Option<&[u8]> {
        self.batch_image(key).or_else(|| self.early.get(key).map(Vec::as_slice))
    }

    fn batch_image(&self, key: &Key) -> Option<&[u8]> {
        let entry = self.batch.entries.get(*self.uncommitted.get(key)? as usize)?;
        let value = self.batch.raw.get(entry.offset as usize..(entry.offset + entry.len) as usize)?;
        value.get(IMAGE_HEADER_LEN..)
    }

    /// Writes a page of zeros. All those of one commit share their bytes: a gap may be thousands of blocks wide.
    pub fn put_zero_page(&mut self, key: Key, lsn: Lsn) -> Result<(), StoreError> {
        let offset = match self.zero_page_at {
            Some(offset) => offset,
            None => {
                let offset = self.offset()?;
                encode_image(&mut self.batch.raw, &[0; BLCKSZ]);
                self.zero_page_at = Some(offset);
                offset
            }
        };
        let len = (IMAGE_HEADER_LEN + BLCKSZ) as u32;
        self.batch.entries.push(Entry { key, lsn, offset, len, will_init: true });
        Ok(())
    }

    /// Outer none: not asked for yet. Inner none: the fork does not exist.
    pub fn known_size(&self, rel: &RelTag) -> Option<Option<u32>> {
        self.sizes.get(rel).map(|known| known.map(|size| size.blocks))
    }

    /// Like `known_size`, for the fork that was looked at last; cheap.
    pub fn last_known_size(&self, rel: &RelTag) -> Option<u32> {
        match &self.last_rel {
            Some((last, blocks)) if last == rel => Some(*blocks),
            _ => None,
        }
    }

    /// Takes note of a size that is stored already, or that a fork does not exist.
    pub fn learn_size(&mut self, rel: RelTag, blocks: Option<u32>) {
        self.last_rel = blocks.map(|blocks| (rel, blocks));
        self.sizes.insert(rel, blocks.map(|blocks| RelSize { blocks, lsn: Lsn::INVALID, commit: u64::MAX, entry: 0 }));
    }

    pub fn look_at(&mut self, rel: RelTag, blocks: u32) {
        self.last_rel = Some((rel, blocks));
    }

    /// Takes note that a fork of so many blocks does not exist any more.
    pub fn forget_rel(&mut self, rel: RelTag, blocks: u32) {
        self.growth_blocks -= i64::from(blocks);
        self.learn_size(rel, None);
        self.dropped.push(Dropped::Relation(rel));
    }

    /// Takes note that no fork of a database exists.
    pub fn forget_database(&mut self, spcnode: u32, dbnode: u32) {
        self.last_rel = None;
        for (rel, size) in &mut self.sizes {
            if (rel.spcnode, rel.dbnode) == (spcnode, dbnode) {
                *size = None;
            }
        }
        self.dropped.push(Dropped::Database(spcnode, dbnode));
    }

    /// Writes the size of a fork. One that was not asked for is new.
    pub fn set_size(&mut self, rel: RelTag, lsn: Lsn, blocks: u32) -> Result<(), StoreError> {
        self.last_rel = Some((rel, blocks));
        let old = self.known_size(&rel).flatten().unwrap_or(0);
        self.growth_blocks += i64::from(blocks) - i64::from(old);
        if let Some(Some(size)) = self.sizes.get_mut(&rel) {
            if size.commit == self.commit && size.lsn == lsn {
                // A second block of the same record: the value is changed where it lies.
                size.blocks = blocks;
                let entry = self.batch.entries[size.entry as usize];
                let at = entry.offset as usize + IMAGE_HEADER_LEN;
                self.batch.raw[at..at + 4].copy_from_slice(&blocks.to_le_bytes());
                return Ok(());
            }
        }
        let entry = self.batch.entries.len() as u32;
        self.put(Key::rel_size(rel), lsn, true, |raw| encode_image(raw, &blocks.to_le_bytes()))?;
        self.sizes.insert(rel, Some(RelSize { blocks, lsn, commit: self.commit, entry }));
        if self.resized.last() != Some(&rel) {
            self.resized.push(rel);
        }
        Ok(())
    }

    /// Outer none: not asked for yet. Inner none: the segment does not exist.
    pub fn known_slru_size(&self, kind: SlruKind, segno: u32) -> Option<Option<u32>> {
        self.slru_sizes.get(&(kind, segno)).copied()
    }

    pub fn learn_slru_size(&mut self, kind: SlruKind, segno: u32, blocks: Option<u32>) {
        self.slru_sizes.insert((kind, segno), blocks);
    }
}

impl ValueSink for Modification {
    fn put_image(&mut self, key: Key, lsn: Lsn, page: &[u8; BLCKSZ]) {
        self.batch.push_image(key, lsn, page);
    }

    fn put_record(&mut self, key: Key, lsn: Lsn, will_init: bool, record: &[u8]) {
        let SharedRecord { offset, len, .. } = match self.last_record[usize::from(will_init)] {
            Some(shared) if shared.lsn == lsn => shared,
            _ => {
                let offset = self.batch.raw.len() as u32;
                pagecore::value::encode_postgres(&mut self.batch.raw, will_init, record);
                let shared = SharedRecord { lsn, offset, len: self.batch.raw.len() as u32 - offset };
                self.last_record[usize::from(will_init)] = Some(shared);
                shared
            }
        };
        self.batch.entries.push(Entry { key, lsn, offset, len, will_init });
    }

    /// Sizes are tracked from the record's blocks, before its values are stored.
    fn observe(&mut self, _key: Key, _lsn: Lsn) {}
}
