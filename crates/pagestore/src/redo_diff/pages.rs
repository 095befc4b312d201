//! The pages as the engine has them now: a map in memory, the pages themselves in a scratch file.
//!
//! A run may touch half a million pages; 8 KiB each would not fit into memory, 60 bytes do. The kernel's cache makes
//! the file fast where there is room. Slots of pages that are gone are used again.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use pagecore::key::RelTag;
use pagecore::page::PageBytes;
use pagecore::{Key, Lsn, BLCKSZ};

use super::RedoDiffError;

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It may or may not exist.
    Unknown,
    /// There is no such block.
    Absent,
    /// The page is in this slot.
    At(u32),
}

/// The record that changed a page last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastRecord {
    pub rmid: u8,
    pub info: u8,
    /// Where it begins and ends.
    pub start: Lsn,
    pub end: Lsn,
    /// A witness has seen the page that it made.
    pub compared: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub state: State,
    /// None for a page of the base that no record has touched.
    pub last: Option<LastRecord>,
    /// False after an after-image was taken over: it does not tell whether the server stamped the page.
    pub lsn_is_known: bool,
    /// A visibility map that was logged as a page of the usual layout: its bits lie in the hole and were lost.
    pub lacks_bits: bool,
}

impl Entry {
    pub fn new(state: State) -> Entry {
        Entry { state, last: None, lsn_is_known: true, lacks_bits: false }
    }
}

pub(super) struct PageTable {
    relations: HashMap<RelTag, HashMap<u32, Entry>>,
    file: File,
    free: Vec<u32>,
    slots: u32,
}

impl PageTable {
    pub fn new(file: File) -> PageTable {
        PageTable { relations: HashMap::new(), file, free: Vec::new(), slots: 0 }
    }

    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.relations.get(&key.rel_tag())?.get(&key.field6).copied()
    }

    pub fn set(&mut self, key: &Key, entry: Entry) {
        let old = self.relations.entry(key.rel_tag()).or_default().insert(key.field6, entry);
        if let Some(Entry { state: State::At(slot), .. }) = old {
            if entry.state != State::At(slot) {
                self.free.push(slot);
            }
        }
    }

    /// Writes a page, into the slot that it had if it had one.
    pub fn write(&mut self, before: State, page: &PageBytes) -> Result<State, RedoDiffError> {
        let slot = match before {
            State::At(slot) => slot,
            _ => self.free.pop().unwrap_or_else(|| {
                self.slots += 1;
                self.slots - 1
            }),
        };
        self.file.write_all_at(page, offset(slot)).map_err(RedoDiffError::Scratch)?;
        Ok(State::At(slot))
    }

    pub fn read(&self, slot: u32, page: &mut PageBytes) -> Result<(), RedoDiffError> {
        self.file.read_exact_at(page, offset(slot)).map_err(RedoDiffError::Scratch)
    }

    /// All blocks of one fork are gone.
    pub fn drop_fork(&mut self, rel: &RelTag) {
        if let Some(blocks) = self.relations.remove(rel) {
            self.free.extend(blocks.values().filter_map(slot_of));
        }
    }

    pub fn drop_database(&mut self, tablespaces: &[u32], database: u32) {
        let gone: Vec<RelTag> = self.tags_of(|rel| rel.dbnode == database && tablespaces.contains(&rel.spcnode));
        gone.iter().for_each(|rel| self.drop_fork(rel));
    }

    /// Blocks of the fork from `first` on do not exist.
    pub fn truncate(&mut self, rel: &RelTag, first: u32) {
        let Some(blocks) = self.relations.get_mut(rel) else { return };
        for (_, entry) in blocks.iter_mut().filter(|(block, _)| **block >= first) {
            self.free.extend(slot_of(entry));
            *entry = Entry { last: entry.last, ..Entry::new(State::Absent) };
        }
    }

    /// Every entry of a database's directory in one tablespace.
    pub fn entries_of_database(&self, tablespace: u32, database: u32) -> Vec<(Key, Entry)> {
        self.tags_of(|rel| rel.dbnode == database && rel.spcnode == tablespace)
            .iter()
            .flat_map(|rel| self.entries_of(rel))
            .collect()
    }

    /// In order.
    pub fn relations(&self) -> Vec<RelTag> {
        let mut tags = self.tags_of(|_| true);
        tags.sort_unstable();
        tags
    }

    /// The blocks of one fork in order.
    pub fn entries_of(&self, rel: &RelTag) -> Vec<(Key, Entry)> {
        let blocks = self.relations.get(rel).into_iter().flatten();
        let mut entries: Vec<_> = blocks.map(|(block, entry)| (Key::rel_block(*rel, *block), *entry)).collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries
    }

    fn tags_of(&self, wanted: impl Fn(&RelTag) -> bool) -> Vec<RelTag> {
        self.relations.keys().filter(|rel| wanted(rel)).copied().collect()
    }
}

fn slot_of(entry: &Entry) -> Option<u32> {
    match entry.state {
        State::At(slot) => Some(slot),
        _ => None,
    }
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * BLCKSZ as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PageTable {
        let dir = crate::testing::TempDir::new();
        let path = dir.path().join("pages");
        PageTable::new(File::options().read(true).write(true).create_new(true).open(path).unwrap())
    }

    fn rel(relnode: u32) -> RelTag {
        RelTag { spcnode: 1663, dbnode: 5, relnode, forknum: 0 }
    }

    fn put(table: &mut PageTable, key: Key, byte: u8) {
        let before = table.get(&key).map_or(State::Unknown, |entry| entry.state);
        let state = table.write(before, &[byte; BLCKSZ]).unwrap();
        table.set(&key, Entry::new(state));
    }

    fn first_byte(table: &PageTable, key: Key) -> Option<u8> {
        let mut page = [0; BLCKSZ];
        match table.get(&key)?.state {
            State::At(slot) => table.read(slot, &mut page).unwrap(),
            _ => return None,
        }
        assert!(page.iter().all(|byte| *byte == page[0]));
        Some(page[0])
    }

    #[test]
    fn pages_keep_their_slots_and_slots_of_gone_pages_are_used_again() {
        let mut table = table();
        for block in 0..4 {
            put(&mut table, Key::rel_block(rel(1), block), block as u8 + 1);
        }
        put(&mut table, Key::rel_block(rel(1), 2), 33);
        assert_eq!(table.slots, 4);
        table.truncate(&rel(1), 2);
        assert_eq!(table.get(&Key::rel_block(rel(1), 3)).map(|entry| entry.state), Some(State::Absent));
        put(&mut table, Key::rel_block(rel(2), 0), 50);
        put(&mut table, Key::rel_block(rel(2), 1), 51);
        assert_eq!(table.slots, 4, "the slots of the truncated blocks");
        assert_eq!(first_byte(&table, Key::rel_block(rel(1), 1)), Some(2));
        assert_eq!(first_byte(&table, Key::rel_block(rel(2), 0)), Some(50));
        assert_eq!(first_byte(&table, Key::rel_block(rel(2), 1)), Some(51));
    }

    #[test]
    fn a_dropped_database_takes_only_its_own_relations_with_it() {
        let mut table = table();
        let other = RelTag { dbnode: 6, ..rel(1) };
        put(&mut table, Key::rel_block(rel(1), 0), 1);
        put(&mut table, Key::rel_block(other, 0), 2);
        table.drop_database(&[1663], 5);
        assert!(table.get(&Key::rel_block(rel(1), 0)).is_none());
        assert_eq!(first_byte(&table, Key::rel_block(other, 0)), Some(2));
        assert_eq!(table.free.len(), 1);
    }
}
